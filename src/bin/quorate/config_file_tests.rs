//! Files of every kind, good and bad.

use super::*;

const LEAST: &str = "group = \"0000000000000000000000000000002a\"\nnode = \"n1\"\n";

fn parse(more: &str) -> Result<NodeFile, String> {
    let text = format!("{LEAST}{more}");
    NodeFile::parse(&text, Path::new("some/node.toml"), None).map_err(|error| error.to_string())
}

/// The file is refused, and the complaint begins with the file and the key.
fn refused(more: &str, key: &str) {
    match parse(more) {
        Err(why) => assert!(why.starts_with(&format!("some/node.toml: {key}: ")), "{more}: {why}"),
        Ok(_) => panic!("{more} passes"),
    }
}

#[test]
fn the_least_file_has_the_librarys_defaults() {
    let file = parse("").unwrap();
    let config = NodeConfig::new(Config::new(GroupId::from_bits(42), NodeId::new("n1").unwrap(), "some/n1"));
    assert_eq!(format!("{:?}", file.config.base), format!("{:?}", config.base));
    assert_eq!(file.config.role, config.role);
    assert_eq!((file.config.priority, file.config.election_timeout), (100, config.election_timeout));
    assert!(!file.found && file.others().is_empty());
}

#[test]
fn the_example_names_every_key_and_is_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/node.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    NodeFile::read(&path, None).unwrap();
    // What it shows commented out is valid too, and says the defaults.
    let whole: String = text
        .lines()
        .map(|line| {
            let key = line.strip_prefix("# ").filter(|rest| {
                rest.split_once(" = ")
                    .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            });
            format!("{}\n", key.unwrap_or(line))
        })
        .collect();
    let all = NodeFile::parse(&whole, &path, None).unwrap_or_else(|error| panic!("{error}\n{whole}"));
    let defaults = NodeConfig::new(Config::new(
        all.config.base.group,
        all.config.base.node.clone(),
        &all.config.base.dir,
    ));
    let base = Config { listen: None, members: defaults.base.members.clone(), ..all.config.base.clone() };
    assert_eq!(format!("{base:?}"), format!("{:?}", defaults.base));
    assert_eq!(all.config.election_timeout, defaults.election_timeout);
    // The complaint about an unknown key lists those that are known.
    let unknown = parse("unheard_of = 1").err().unwrap_or_default();
    let known: Vec<&str> = unknown.split('`').skip(3).step_by(2).collect();
    assert!(known.len() > 25 && known.contains(&"backoff_max_ms"), "{unknown}");
    for key in known {
        let shown = text.contains(&format!("{key} = "))
            || text.contains(&format!("[[{key}]]"))
            || text.contains(&format!("[{key}]"));
        assert!(shown, "the example does not show {key}");
    }
}

#[test]
fn every_key_reaches_the_configuration() {
    let file = parse(
        "dir = \"/var/q\"\nlisten = \"10.0.0.1:7000\"\nadvertise = \"db1:7000\"\nfound = true\n\
         seeds = [\"db2:7000\", \"db3:7000\"]\nregion = \"eu\"\npriority = 7\nslot = \"s\"\n\
         election_timeout_ms = 900\nsegment_bytes = 131072\nmax_payload = 1000\nmax_frame = 70000\n\
         batch_bytes = 5000\nlazy_flush_ms = 2\nheartbeat_ms = 3\npeer_timeout_ms = 400\n\
         handshake_timeout_ms = 50\nbackoff_min_ms = 6\nbackoff_max_ms = 70\ncheckpoint_every_ms = 8\n\
         keep_bytes = 11\npin_max_bytes = 12\npin_max_age_ms = 13\ndisk_floor = 14\nslot_every_ms = 15\nretention_every_ms = 16\n\
         snapshots = \"manual\"\nmax_snapshots = 3\nsnapshot_bytes_per_second = 70000\nsnapshot_patience_ms = 80\n\
         lag_limit = 9\nmax_connections = 10\ncompression = \"lz4\"\nplaintext = \"allowed\"\n\
         [[members]]\nnode = \"n1\"\naddress = \"db1:7000\"\n\
         [[members]]\nnode = \"n2\"\naddress = \"db4:7000\"\nrole = \"arbiter\"\nregion = \"us\"\npriority = 1\n",
    )
    .unwrap();
    let ms = Duration::from_millis;
    let NodeConfig { base, region, priority, election_timeout, .. } = &file.config;
    assert_eq!((base.dir.as_path(), base.slot.as_deref()), (Path::new("/var/q"), Some("s")));
    assert_eq!((base.segment_bytes, base.max_payload, base.max_frame), (131_072, 1000, 70_000));
    assert_eq!((base.batch_bytes, base.lag_limit, base.max_connections), (5000, 9, 10));
    assert_eq!((base.keep_bytes, base.pin_max_bytes, base.disk_floor), (11, 12, 14));
    assert_eq!((base.snapshots, base.max_snapshots), (quorate::config::Snapshots::Manual, 3));
    assert_eq!((base.snapshot_bytes_per_second, base.snapshot_patience), (70_000, ms(80)));
    let retention = [base.pin_max_age, base.slot_every, base.retention_every];
    assert_eq!(retention.map(|time| time.as_millis()), [13, 15, 16]);
    assert_eq!((base.lazy_flush, base.heartbeat, base.peer_timeout), (ms(2), ms(3), ms(400)));
    assert_eq!((base.handshake_timeout, base.backoff_min, base.backoff_max), (ms(50), ms(6), ms(70)));
    assert_eq!((base.checkpoint_every, *election_timeout), (ms(8), ms(900)));
    assert_eq!((base.compression, base.plaintext), (Compression::Lz4, Plaintext::Allowed));
    assert_eq!((region.as_str(), *priority, file.found), ("eu", 7, true));
    let second = base.members.find(&NodeId::new("n2").unwrap()).unwrap();
    assert_eq!((second.role, second.region.as_str(), second.priority), (Role::Arbiter, "us", 1));
    let texts: Vec<String> = file.others().iter().map(Address::to_string).collect();
    assert_eq!(texts, ["tcp://db2:7000", "tcp://db3:7000", "tcp://db4:7000"]);
    let fed = parse("role = \"secondary\"\nupstream = \"127.0.0.1:1\"\n").unwrap();
    assert_eq!((fed.config.role, fed.config.base.upstream), (Role::Secondary, "127.0.0.1:1".parse().ok()));
}

#[test]
fn a_founder_without_a_list_founds_alone() {
    let file = parse("found = true\nlisten = \"127.0.0.1:7001\"\npriority = 3\nregion = \"eu\"").unwrap();
    let members: Vec<&Member> = file.config.base.members.iter().collect();
    assert_eq!(members, [&Member::electable(NodeId::new("n1").unwrap())]);
}

#[test]
fn unknown_missing_and_mistyped_keys_are_refused_by_name() {
    for (more, key) in [
        ("heartbeat = 100", "heartbeat"),
        ("fond = true", "fond"),
        ("[[members]]\nnode = \"a\"\nport = 1", "port"),
        ("[node2]\nx = 1", "node2"),
        ("priority = 256", "priority"),
        ("found = \"yes\"", "found"),
        ("segment_bytes = -1", "segment_bytes"),
    ] {
        let why = parse(more).err().unwrap_or_else(|| panic!("{more} passes"));
        assert!(why.starts_with("some/node.toml: ") && why.contains(key), "{more}: {why}");
    }
    for text in ["node = \"n1\"", "group = "] {
        assert!(matches!(NodeFile::parse(text, Path::new("node.toml"), None), Err(FileError::Toml { .. })));
    }
    assert!(matches!(NodeFile::read(Path::new("/nowhere/node.toml"), None), Err(FileError::Read { .. })));
}

#[test]
fn every_value_out_of_bounds_is_refused_by_the_name_of_its_key() {
    for (key, value) in [
        ("listen", "\"nowhere\""),
        ("advertise", "\"nowhere\""),
        ("seeds", "[\"127.0.0.1:1\", \"\"]"),
        ("role", "\"king\""),
        ("slot", "\"\""),
        ("election_timeout_ms", "299"),
        ("election_timeout_ms", "60001"),
        ("segment_bytes", "65535"),
        ("segment_bytes", "1073741825"),
        ("max_payload", "0"),
        ("max_payload", "16777216"),
        ("max_frame", "65535"),
        ("max_frame", "1073741825"),
        ("batch_bytes", "4095"),
        ("batch_bytes", "16777217"),
        ("lazy_flush_ms", "0"),
        ("lazy_flush_ms", "60001"),
        ("heartbeat_ms", "0"),
        ("heartbeat_ms", "60001"),
        ("peer_timeout_ms", "299"),
        ("peer_timeout_ms", "3600001"),
        ("handshake_timeout_ms", "9"),
        ("handshake_timeout_ms", "600001"),
        ("backoff_min_ms", "0"),
        ("backoff_min_ms", "60001"),
        ("backoff_max_ms", "19"),
        ("backoff_max_ms", "3600001"),
        ("checkpoint_every_ms", "0"),
        ("checkpoint_every_ms", "3600001"),
        ("pin_max_age_ms", "0"),
        ("slot_every_ms", "0"),
        ("retention_every_ms", "3600001"),
        ("snapshots", "\"perhaps\""),
        ("max_snapshots", "0"),
        ("snapshot_bytes_per_second", "65535"),
        ("snapshot_patience_ms", "9"),
        ("lag_limit", "0"),
        ("max_connections", "0"),
        ("max_connections", "1025"),
        ("compression", "\"zip\""),
        ("plaintext", "\"yes\""),
        ("upstream", "\"127.0.0.1:1\""),
    ] {
        refused(&format!("{key} = {value}"), key);
    }
    refused(&format!("region = \"{}\"", "x".repeat(65)), "region");
    for key in ["listen", "advertise"] {
        refused(&format!("{key} = \"db1:7000\""), "plaintext");
    }
    refused("seeds = [\"db1:7000\"]", "plaintext");
    refused("found = true\n[[members]]\nnode = \"n2\"", "members");
    refused("found = true\nrole = \"arbiter\"", "members");
    refused("found = true\n[[members]]\nnode = \"a b\"", "members.node");
    let text = LEAST.replace("n1", "n 1");
    assert!(
        NodeFile::parse(&text, Path::new("x"), None)
            .is_err_and(|error| error.to_string().starts_with("x: node: "))
    );
    let text = LEAST.replace("2a", "2x");
    assert!(
        NodeFile::parse(&text, Path::new("x"), None)
            .is_err_and(|error| error.to_string().starts_with("x: group: "))
    );
}

#[test]
fn one_file_may_do_for_all_founders() {
    let text = "group = \"0000000000000000000000000000002a\"\nfound = true\n\
                [[members]]\nnode = \"n1\"\naddress = \"127.0.0.1:1\"\n\
                [[members]]\nnode = \"n2\"\naddress = \"127.0.0.1:2\"\nrole = \"arbiter\"\npriority = 3\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("group.toml");
    std::fs::write(&path, text).unwrap();
    let second = NodeFile::read(&path, NodeId::new("n2").ok().as_ref()).unwrap().config;
    assert_eq!((second.role, second.priority), (Role::Arbiter, 3));
    assert_eq!(second.base.listen, "127.0.0.1:2".parse().ok());
    assert_eq!(second.base.dir, dir.path().join("n2"));
    let first = NodeFile::read(&path, NodeId::new("n1").ok().as_ref()).unwrap();
    assert_eq!(first.others(), ["127.0.0.1:2".parse().unwrap()]);
    // After the founding the list is one of seeds.
    let later = text.replace("found = true\n", "");
    let later = NodeFile::parse(&later, &path, NodeId::new("n3").ok().as_ref()).unwrap();
    assert_eq!((later.found, later.others().len(), later.config.base.members.iter().count()), (false, 2, 1));
    assert_eq!(first.config.base.members, second.base.members);
    let nameless = NodeFile::read(&path, None).err().unwrap().to_string();
    assert!(nameless.contains("node: ") && nameless.contains("--node"), "{nameless}");
    let stranger = NodeFile::read(&path, NodeId::new("n9").ok().as_ref()).err().unwrap().to_string();
    assert!(stranger.contains("members: "), "{stranger}");
    let (group, addresses) = group_in(&path).unwrap();
    let texts: Vec<String> = addresses.iter().map(Address::to_string).collect();
    assert_eq!((group.bits(), texts), (42, vec!["tcp://127.0.0.1:1".into(), "tcp://127.0.0.1:2".into()]));
}

#[test]
fn an_archive_is_a_table_of_its_own() {
    let file = parse("[archive]\ndir = \"a\"\nevery_ms = 50\nbase_bytes = 70000\nbases = 3\n").unwrap();
    let archive = file.config.archive.unwrap();
    assert_eq!((archive.every, archive.base_bytes, archive.bases), (Duration::from_millis(50), 70_000, 3));
    assert!(parse("").unwrap().config.archive.is_none());
    refused("[archive]\ndir = \"a\"\nevery_ms = 1\n", "archive.every_ms");
    refused("[archive]\ndir = \"a\"\nbase_bytes = 1\n", "archive.base_bytes");
    refused("[archive]\ndir = \"a\"\nbases = 0\n", "archive.bases");
    refused("role = \"secondary\"\n[archive]\ndir = \"a\"\n", "archive");
    assert!(parse("[archive]\nbases = 2\n").is_err(), "a directory has to be named");
}
