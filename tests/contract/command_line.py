"""The command line: output that other programs read, and exit codes."""

from bench import ROOT, Home, photo
from clients import json_or_text
from settings import CONFIGURATIONS


def result(done, keep_error=True):
    """Returns exit code and output of a command; JSON is parsed, lines of JSON one by one."""
    code, out, error = done
    text = json_or_text(out)
    if isinstance(text, str) and text.startswith("{"):
        text = [json_or_text(it.encode()) for it in text.splitlines()]
    found = {"exit_code": code, "stdout": text}
    return found | {"stderr": error.decode("utf-8", "replace")} if keep_error else found


def command_line(home, running):
    """Output as JSON and CSV, and exit codes; beside the daemon and without it."""
    for name in ("obama2.jpg", "biden.jpg", "astronaut.png"):
        (home.folder / name).write_bytes(photo(name))
    commands = [
        ("subjects", "--json"),
        ("subjects", "--outdated", "--json"),
        ("attendance", "--json"),
        ("attendance", "--venue", "side", "--all", "--json"),
        ("attendance", "--summary", "--json"),
        ("attendance", "--summary", "--absent", "--venue", "strict", "--json"),
        ("attendance", "--csv"),
        ("attendance", "--summary", "--csv"),
        ("attendance", "--venue", "nowhere", "--json"),
        ("attendance", "--from", "yesterday"),
        ("venues", "--json"),
        ("erasures", "--json"),
        ("sync", "--status", "--json"),
        ("sync", "--json"),
        ("recognise", "--json", "obama2.jpg", "astronaut.png"),
        ("recognise", "--json", "missing.jpg"),
        ("models", "verify", "--json"),
        ("prune", "--days", "30", "--dry-run", "--json"),
        ("keys", "device"),
        ("check-config",),
        ("import", "--json", "missing.gallery", "--key-file", "site.key"),
    ]
    found = {" ".join(it): result(home.run(*it), keep_error=False) for it in commands}
    suffix = "beside" if running else "after"
    found["backup"] = result(home.run("backup", f"backup-{suffix}", "--json"), keep_error=False)
    found["backup again"] = result(
        home.run("backup", f"backup-{suffix}", "--json"), keep_error=False
    )
    export = home.run("export", f"{suffix}.gallery", "--key-file", "site.key", "--json")
    found["export"] = result(export, keep_error=False) | {
        "header": export_header(home.folder / f"{suffix}.gallery")
    }
    return found


def export_header(path):
    data = path.read_bytes()
    first, _, rest = data.partition(b"\n")
    size = int.from_bytes(rest[1:5], "little")
    return {
        "magic": first.decode(),
        "part": chr(rest[0]),
        "header": json_or_text(rest[5 : 5 + size]),
    }


def listings(home):
    """What an upgrade must keep, with its ids and times as they are."""
    commands = [
        ("subjects", "--json"),
        ("attendance", "--all", "--json"),
        ("attendance", "--summary", "--json"),
        ("attendance", "--summary", "--venue", "side", "--json"),
        ("venues", "--json"),
        ("erasures", "--json"),
    ]
    return {" ".join(it): json_or_text(home.run(*it)[1]) for it in commands}


def record_command_line(bench):
    home = Home(bench, "command-line", '[device]\nsite = "hq"\nname = "door-1"\n[recognition]\n')
    commands = [
        ("--version",),
        (),
        ("dance",),
        ("run", "--fast"),
        ("attendance", "--json"),
        ("subjects", "--json"),
        ("sync", "--status", "--json"),
        ("erasures", "--json"),
        ("snapshot",),
        ("restore", "nowhere"),
        ("verify-receipt", "missing"),
        ("check-config", "--show"),
    ]
    return {" ".join(it) or "nothing": result(home.run(*it), keep_error=False) for it in commands}


def record_configurations(bench):
    home, found = Home(bench, "configurations", ""), {}
    for name, text, environment in CONFIGURATIONS:
        (home.folder / "one.toml").write_text(text)
        found[name] = result(
            home.run("check-config", "--show", config="one.toml", environment=environment)
        )
    home.folder.joinpath("reference.toml").write_text(reference_configuration())
    found["reference"] = result(home.run("check-config", "--show", config="reference.toml"))
    found["missing file"] = result(home.run("check-config", config="missing.toml"))
    starts = [
        ("unknown key", '[mqtt]\nhots = "a"\n'),
        ("no networks", '[recognition]\nruntime_library = "none.so"\n'),
        ("storage unusable", '[storage]\ndirectory = "file"\n[recognition]\n'),
    ]
    (home.folder / "file").write_text("this is no folder")
    for name, text in starts:
        # Home.configure would name the library that is there.
        (
            (home.folder / "config.toml").write_text(text)
            if name == "no networks"
            else home.configure(text)
        )
        found[f"run: {name}"] = result(home.run("run"), keep_error=False)
    return found


def reference_configuration():
    """Every key of the configuration with its default, as the file of the project has it."""
    return (ROOT / "config.toml").read_text()
