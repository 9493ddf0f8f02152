use std::fs;
use std::io::Write as _;

use super::*;

fn touch(dir: &Path, names: &[&str]) {
    for name in names {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
}

#[test]
fn each_file_or_folder_is_one_person() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "Jane Doe.jpg",
        "Jane Doe/b.PNG",
        "Jane Doe/a.jpg",
        "Jane Doe/notes.txt",
        "Zoë.webp",
        "Zoe.heic",
    ];
    touch(dir.path(), &names);
    touch(dir.path(), &[".DS_Store", "Thumbs.db", "Nobody/readme.md"]);
    let found = from_folder(dir.path(), 2).unwrap();
    let list: Vec<_> = found.people.iter().map(|it| (it.id.as_str(), it.name.as_str())).collect();
    assert_eq!(list, [("jane-doe", "Jane Doe"), ("zoe", "Zoe")]);
    let file = |path: &Path| path.strip_prefix(dir.path()).unwrap().display().to_string();
    let jane = &found.people[0];
    assert_eq!(
        jane.photographs.iter().map(|it| file(&it.path)).collect::<Vec<_>>(),
        ["Jane Doe/a.jpg", "Jane Doe/b.PNG"]
    );
    assert_eq!(jane.surplus.iter().map(|it| file(&it.path)).collect::<Vec<_>>(), ["Jane Doe.jpg"]);
    let skipped: Vec<_> =
        found.skipped.iter().map(|it| (file(&it.file), it.why.as_str())).collect();
    assert_eq!(skipped[0], ("Nobody".into(), "no_photograph"));
    assert_eq!(skipped[1].0, "Zoë");
    assert!(skipped[1].1.starts_with("same_id (as \"Zoe\": zoe"), "{skipped:?}");
    assert_eq!(found.ignored, 4);
}

#[test]
fn csv_map_assigns_subject_ids() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["1.jpg", "2.jpg", "more/3.jpg"]);
    let map = dir.path().join("map.csv");
    fs::write(&map, "file,id,name\n1.jpg,j1,Jane Doe\nmore,j1,Jane Doe\n2.jpg,j2,\n").unwrap();
    let found = from_map(&map, dir.path(), 10).unwrap();
    let list: Vec<_> = found
        .people
        .iter()
        .map(|it| (it.id.as_str(), it.name.as_str(), it.photographs.len()))
        .collect();
    assert_eq!(list, [("j1", "Jane Doe", 2), ("j2", "j2", 1)]);
    for bad in [
        "file,id\n1.jpg,a b\n",
        "file,id,name\n1.jpg,a,A\n2.jpg,a,B\n",
        "a,b\n1,2\n",
        "",
        "\n\n",
        "file,id,name\n,a,A\n",
        "file,id,name\n./,a,A\n",
    ] {
        fs::write(&map, bad).unwrap();
        assert!(from_map(&map, dir.path(), 10).is_err(), "{bad}");
    }
}

/// The names of the people, with how many photographs each has.
fn listed(found: &FoundPeople) -> Vec<(&str, usize)> {
    found.people.iter().map(|it| (it.name.as_str(), it.photographs.len())).collect()
}

#[test]
fn files_are_known_by_ending_or_content() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["A.jfif", "B.PJPEG", "C.pjp", "notes", "Thumbs.db", "E.jpg.crdownload"]);
    fs::write(dir.path().join("Dr. Doe"), b"\xFF\xD8\xFF\xE0\0\x10JFIF").unwrap();
    fs::write(dir.path().join("Phone"), b"\0\0\0\x18ftypheic").unwrap();
    let found = from_folder(dir.path(), 9).unwrap();
    assert_eq!(listed(&found), [("A", 1), ("B", 1), ("C", 1), ("Dr. Doe", 1), ("Phone", 1)]);
    assert_eq!(found.ignored, 3);
}

#[test]
fn system_folders_are_nobody() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &[
            "Carl.jpg",
            "__MACOSX/Carl.jpg",
            "@eaDir/x/SYNOPHOTO_THUMB_M.jpg",
            ".thumbnails/a.jpg",
            "#recycle/b.jpg",
            "._Carl.jpg",
            "Anna/@eaDir/a.jpg",
            "Anna/1.jpg",
            "Anna/.2.jpg",
        ],
    );
    let found = from_folder(dir.path(), 9).unwrap();
    assert_eq!(listed(&found), [("Anna", 1), ("Carl", 1)]);
    assert!(found.skipped.is_empty(), "{:?}", found.skipped);
}

#[test]
fn names_that_look_alike_are_one_person() {
    let dir = tempfile::tempdir().unwrap();
    touch(
        dir.path(),
        &["Zo\u{eb}.jpg", "Zoe\u{308}/2.jpg", "Zo\u{200b}\u{eb}.png", "\u{feff}Max\u{a0}Ox.jpg"],
    );
    let found = from_folder(dir.path(), 9).unwrap();
    assert_eq!(listed(&found), [("Max Ox", 1), ("Zo\u{eb}", 3)]);
}

#[test]
fn table_of_a_spreadsheet_is_read() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), &["1.jpg", "Zoe\u{308}.jpg"]);
    let map = dir.path().join("map.csv");
    let utf16 = |text: &str| {
        let units = [0xFEFF].into_iter().chain(text.encode_utf16());
        units.flat_map(u16::to_le_bytes).collect::<Vec<u8>>()
    };
    for table in [
        "file,id,name\n1.jpg,j1,Jane\nZo\u{eb}.jpg,z,Zo\u{eb}\n".as_bytes().to_vec(),
        "\u{feff}file;id;name\r\n1.jpg;j1;Jane\r\nZo\u{eb}.jpg;z;Zo\u{eb}\r\n;;\r\n"
            .as_bytes()
            .to_vec(),
        "sep=;\nfile;id;name\n1.jpg;j1;Jane\nZo\u{eb}.jpg;z;Zo\u{eb}\n".as_bytes().to_vec(),
        "Name\tID\tFile\nJane\tj1\t1.jpg\nZo\u{eb}\tz\tZo\u{eb}.jpg\n".as_bytes().to_vec(),
        utf16("file\tid\tname\r\n1.jpg\tj1\tJane\r\nZo\u{eb}.jpg\tz\tZo\u{eb}\r\n"),
    ] {
        fs::write(&map, &table).unwrap();
        let found = from_map(&map, dir.path(), 10).unwrap();
        assert_eq!(listed(&found), [("Jane", 1), ("Zo\u{eb}", 1)]);
        assert!(found.people[1].photographs[0].path.exists(), "the folder has it decomposed");
    }
    fs::write(&map, b"file,id,name\n1.jpg,j,J\xfcrgen\n").unwrap();
    let refused = format!("{:#}", from_map(&map, dir.path(), 10).unwrap_err());
    assert!(refused.contains("CSV UTF-8"), "{refused}");
}

/// Writes an archive with these entries, each of which has its own name as its content.
fn archived(path: &Path, names: &[&str]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for name in names {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(name.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn archive_is_read_like_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("staff.zip");
    for names in [
        &["Zo\u{eb}.jpg", "Anna/1.jpg", "Anna/2.png", "__MACOSX/Anna/._1.jpg", "notes.txt"][..],
        &[
            "staff/Zo\u{eb}.jpg",
            "staff/Anna/1.jpg",
            "staff/Anna/2.png",
            "staff/.DS_Store",
            "staff/a.txt",
        ],
        &[
            "all/Zo\u{eb}.jpg",
            "all/Anna/1.jpg",
            "all/Anna/2.png",
            "all/Anna/@eaDir/1.jpg",
            "all/a.md",
        ],
    ] {
        archived(&zip, names);
        let found = from_folder(&zip, 9).unwrap();
        assert_eq!(listed(&found), [("Anna", 2), ("Zo\u{eb}", 1)], "{names:?}");
        assert_eq!(found.ignored, 2, "{names:?}");
    }
    archived(&zip, &["Anna/1.jpg", "Anna/2.jpg"]);
    let found = from_folder(&zip, 9).unwrap();
    assert_eq!(listed(&found), [("Anna", 2)], "the only folder is a person");
    let photograph = &found.people[0].photographs[1];
    assert_eq!(photograph.path, zip.join("Anna/2.jpg"));
    assert!(photograph.read().unwrap_err().contains("not a picture"));
}

#[test]
fn hostile_archives_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let zip = dir.path().join("a.zip");
    archived(&zip, &["../out.jpg"]);
    assert!(from_folder(&zip, 9).is_err(), "it leads out of the archive");
    archived(&zip, &["Anna.jpg"]);
    let whole = fs::read(&zip).unwrap();
    for cut in [0, 10, whole.len() / 2, whole.len() - 5] {
        fs::write(&zip, &whole[..cut]).unwrap();
        let refused = format!("{:#}", from_folder(&zip, 9).unwrap_err());
        assert!(refused.contains("zip archive"), "{refused}");
    }
    // A hundred megabytes of zeroes in a hundred kilobytes.
    let mut bomb = zip::ZipWriter::new(fs::File::create(&zip).unwrap());
    bomb.start_file("Bomb.jpg", zip::write::SimpleFileOptions::default()).unwrap();
    bomb.write_all(b"\xFF\xD8\xFF\xE0").unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..100 {
        bomb.write_all(&zeros).unwrap();
    }
    bomb.finish().unwrap();
    let found = from_folder(&zip, 9).unwrap();
    assert!(found.people[0].photographs[0].read().unwrap_err().contains("too_large"));
}
