"""The configurations of the recorded daemons, and those that the program must accept or refuse."""

ALL_DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS = str(ALL_DAYS).replace("'", '"')

MAIN = """[device]
site = "hq"
name = "door-1"
[clock]
trust = "always"
[camera]
source = "replay"
path = "scene.csv"
repeat = true
[recognition]
pad = "flag"
pad_threshold = 1.0
[attendance]
venue = "main"
unknown_every = "1h"
[[venue]]
id = "main"
name = "Main entrance"
[[venue.session]]
id = "day"
weekdays = {days}
start = "00:00"
end = "00:00"
early = "0s"
[[venue]]
id = "strict"
[[venue.session]]
id = "late-day"
weekdays = {days}
start = "00:00"
end = "00:00"
early = "0s"
late_after = "0s"
[[venue]]
id = "side"
direction = "alternate"
re_entry_gap = "0s"
[mqtt]
host = "127.0.0.1"
port = {mqtt}
health_every = "1s"
[home_assistant]
enabled = {discovery}
[mongo]
uri = "mongodb://127.0.0.1:{mongo}/?replicaSet=rs0"
[fleet]
key_file = "site.key"
[http]
listen = "127.0.0.1:{http}"
token_file = "token"
cors_origins = ["https://office.example.net"]
per_minute_max = 100000
"""

REPLAY = 'source = "replay"'
MISSING_CAMERA = 'source = "v4l2"\ndevice = "/dev/video-that-is-missing"'

# For the state that the main session left: without the servers that have gone, and without a camera
# that would add to the record.
UPGRADED = "".join(
    part
    for part in MAIN.replace("{days}", DAYS)
    .replace("{discovery}", "false")
    .replace(REPLAY, 'source = "none"')
    .replace("\n[", "\n\0[")
    .split("\0")
    if not part.startswith(("[mongo]", "[fleet]"))
)

SIGNED = """[device]
site = "hq"
name = "door-2"
[clock]
trust = "always"
[recognition]
[mqtt]
host = "127.0.0.1"
port = {mqtt}
health_every = "1s"
[mongo]
uri = "mongodb://127.0.0.1:{mongo}/?replicaSet=rs0"
database = "signed"
[fleet]
share = "mongo"
key_file = "site.key"
[http]
listen = "127.0.0.1:{http}"
token_file = "token"
[commands]
trusted_keys = ["{key}"]
"""

OPEN = """[device]
site = "hq"
name = "door.3_b"
[clock]
trust = "always"
[camera]
source = "replay"
path = "scene.csv"
repeat = true
[recognition]
pad = "off"
unknown_samples = 8
[broker]
enabled = true
listen = "127.0.0.1:{mqtt}"
[mqtt]
health_every = "1s"
[privacy]
snapshot = false
[home_assistant]
people = false
name = "The third door"
[http]
listen = "127.0.0.1:{http}"
"""

LIMITS = """[device]
site = "hq"
name = "door-4"
[clock]
trust = "always"
[recognition]
[mqtt]
host = "127.0.0.1"
port = {mqtt}
health_every = "1s"
[home_assistant]
discovery_prefix = "ha"
[http]
listen = "127.0.0.1:{http}"
token_file = "token"
per_minute_max = 3
[commands]
per_minute_max = 3
"""

# Name, configuration, environment. Exit codes and, of what is accepted, the resulting settings.
CONFIGURATIONS = [
    ("empty", "", {}),
    ("unknown section", "[brocker]\n", {}),
    ("unknown key", '[mqtt]\nhots = "a"\n', {}),
    ("not TOML", "[mqtt\n", {}),
    ("wrong type", '[mqtt]\nport = "x"\n', {}),
    ("port too large", "[mqtt]\nport = 70000\n", {}),
    ("bad site", '[device]\nsite = "a b"\n', {}),
    ("reserved device", '[device]\nname = "all"\n', {}),
    ("bad duration", '[mqtt]\nkeep_alive = "soon"\n', {}),
    ("bad camera source", '[camera]\nsource = "film"\n', {}),
    ("replay without path", '[camera]\nsource = "replay"\n', {}),
    ("fps 0", "[camera]\nfps = 0.0\n", {}),
    ("bad region", "[camera]\nregion = [0.5, 0.0, 0.2, 1.0]\n", {}),
    ("bad rotate", "[camera]\nrotate = 45\n", {}),
    ("threshold 2", "[recognition]\nthreshold = 2.0\n", {}),
    ("bad pad", '[recognition]\npad = "maybe"\n', {}),
    ("bad reach", '[recognition]\nreach = "moon"\n', {}),
    ("samples 9", "[recognition]\nsamples_min = 9\n", {}),
    ("bad zone", '[[venue]]\nid = "a"\ntime_zone = "Mars/Olympus"\n', {}),
    ("venue twice", '[[venue]]\nid = "a"\n[[venue]]\nid = "a"\n', {}),
    ("venue without id", '[[venue]]\nname = "a"\n', {}),
    ("door of no venue", '[attendance]\nvenue = "b"\n[[venue]]\nid = "a"\n', {}),
    (
        "session overlap",
        '[[venue]]\nid = "main"\n'
        + 2 * ('[[venue.session]]\nid = "a"\nweekdays = ["mon"]\nstart = "08:00"\nend = "09:00"\n'),
        {},
    ),
    ("mongo not a URI", '[mongo]\nuri = "postgres://a"\n', {}),
    ("mongo weak", '[mongo]\nuri = "mongodb://a/?w=0"\n', {}),
    ("mongo without TLS", '[mongo]\nuri = "mongodb://a/"\ntls = true\n', {}),
    ("mongo file missing", '[mongo]\nuri_file = "missing"\n', {}),
    ("fleet share", '[fleet]\nshare = "mail"\n', {}),
    ("fleet by mongo without mongo", '[fleet]\nshare = "mongo"\nkey_file = "token"\n', {}),
    ("http not loopback", '[http]\nlisten = "0.0.0.0:8080"\n', {}),
    ("http no port", '[http]\nlisten = "localhost"\n', {}),
    ("http token missing", '[http]\nlisten = "127.0.0.1:8080"\ntoken_file = "missing"\n', {}),
    ("http bad origin", '[http]\ncors_origins = ["office"]\n', {}),
    ("broker beyond loopback", '[broker]\nenabled = true\nlisten = "0.0.0.0:1883"\n', {}),
    ("bad trusted key", '[commands]\ntrusted_keys = ["ed25519:short"]\n', {}),
    ("password twice", '[mqtt]\npassword = "a"\npassword_file = "token"\n', {}),
    ("window 0", "[mqtt]\nwindow = 0\n", {}),
    ("bad clock", '[clock]\ntrust = "never"\n', {}),
    ("bad log level", '[log]\nlevel = "loud"\n', {}),
    ("bad prefix", '[home_assistant]\ndiscovery_prefix = "a/#"\n', {}),
    ("environment", "", {"ROLLCALL_MQTT_HOST": "broker.local", "ROLLCALL_DEVICE_SITE": "north"}),
    ("environment unknown", "", {"ROLLCALL_MQTT_HOTS": "broker.local"}),
    ("environment bad", "", {"ROLLCALL_MQTT_PORT": "many"}),
]
