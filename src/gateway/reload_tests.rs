//! Tests of reloading: what is applied, what waits for a restart, what is refused, and what shards whose queue is full
//! get. Real inboxes, a real file; no shard runs.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32};

use ringway_engine::namespace::Allow;
use ringway_sys::Inbox;

use super::*;
use crate::control::MetricsHub;
use crate::drain::DrainOrders;

/// A node of two shards that nobody runs, and the file that configures it.
struct Node {
    file: PathBuf,
    reloader: Reloader,
    shared: Arc<Shared>,
    /// What the call-back was told last, and whether it refuses.
    followed: Arc<(Mutex<Option<String>>, AtomicBool)>,
}

/// Batches that the queue of a shard holds.
const LANE_CAPACITY: usize = 2;

impl Node {
    fn start(text: &str, set: &[&str]) -> Node {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ringway-reload-{}-{}.toml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let file = std::env::temp_dir().join(name);
        fs::write(&file, text).expect("temporary folder is writable");
        let set = set.iter().map(|pair| pair.to_string()).collect();
        let args = RunArgs { config: Some(file.clone()), set, ..RunArgs::default() };
        let config = Config::load_from(&args, std::iter::empty()).expect("is valid");
        let inboxes = (0..3).map(|_| Inbox::new(LANE_CAPACITY, 3).expect("a descriptor")).collect();
        let metrics = MetricsHub::new(2);
        let (stop, drain) = (AtomicBool::new(false), DrainOrders::new(0));
        let shared = Arc::new(Shared { shards: 2, inboxes, metrics, stop, stop_timeout_ms: 0, drain });
        let followed = Arc::new((Mutex::new(None), AtomicBool::new(false)));
        let told = Arc::clone(&followed);
        let follow = Box::new(move |config: &Config| {
            if told.1.load(Ordering::Relaxed) {
                return Err("no such key".to_string());
            }
            *told.0.lock().expect("no panic") = Some(config.settings.websocket_path.clone());
            Ok(())
        });
        Node { file, reloader: Reloader::new(&config, Arc::clone(&shared), follow), shared, followed }
    }

    fn reload(&self, text: &str) -> Result<ReloadReport, ConfigError> {
        fs::write(&self.file, text).expect("the file is writable");
        self.reloader.reload()
    }

    /// The rules that wait for a shard, oldest first.
    fn rules(&self, shard: usize) -> Vec<Arc<Namespaces>> {
        let mut out = Vec::new();
        while let Some(batch) = self.shared.inboxes[shard].pop() {
            assert_eq!(batch.from, CoreId(2), "from the control plane");
            for message in batch.messages {
                let LaneMessage::Rules(rules) = message else { panic!("{message:?}") };
                out.push(rules);
            }
        }
        out
    }

    /// Shards that wait for rules.
    fn behind(&self) -> Vec<u16> {
        self.reloader.running().behind.iter().map(|core| core.0).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| key.to_string()).collect()
}

#[test]
fn what_may_change_is_applied_and_goes_to_every_shard() {
    let node = Node::start("[[namespaces]]\nname = \"chat\"\n[[namespaces]]\nname = \"old\"\n", &[]);
    let report = node
        .reload(
            "[namespace]\ncatch_all = true\npublish = \"anyone\"\n[[namespaces]]\nname = \"new\"\n\
             [[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\nhistory_size = 3\nhistory_ttl_ms = 1000\n",
        )
        .expect("is valid");
    let expected = [
        "namespace.catch_all",
        "namespace.publish",
        "namespaces.new",
        "namespaces.chat.history_size",
        "namespaces.chat.history_ttl_ms",
        "namespaces.chat.subscribe",
        "namespaces.old",
    ];
    assert_eq!(report, ReloadReport { applied: keys(&expected), restart: vec![] });
    // The third inbox is the control plane's, whose calls follow the rules too.
    for inbox in 0..3 {
        let [rules] = &node.rules(inbox)[..] else { panic!("one message") };
        let (id, chat) = rules.resolve("chat:1").expect("is configured");
        assert_eq!((id.0, chat.subscribe, chat.history_size), (1, Allow::Anyone, 3), "chat keeps its id");
        assert_eq!(rules.resolve("new:1").expect("is configured").0.0, 3, "behind the one that is gone");
        assert_eq!(rules.resolve("old:1").expect("the catch-all").0.0, 0);
        assert_eq!(rules.resolve("any").expect("default").1.publish, Allow::Anyone);
    }
    assert_eq!(node.followed.0.lock().unwrap().as_deref(), Some("/connection/websocket"));
    // The same again changes nothing.
    let same = fs::read_to_string(&node.file).unwrap();
    assert_eq!(node.reload(&same).expect("is valid"), ReloadReport::default());
}

#[test]
fn what_needs_a_restart_is_named_and_stays() {
    let node = Node::start("[[namespaces]]\nname = \"chat\"\n", &["ingest.tokens=s3cret"]);
    let changed = "shards = 7\n[client]\nwebsocket_path = \"/other\"\n[limits]\noutbox_bytes_max = 2097152\n\
                   [namespace]\npayload = \"bytes\"\npublish = \"anyone\"\n[[namespaces]]\nname = \"chat\"\npayload = \"bytes\"\n";
    let waits =
        ["shards", "client.websocket_path", "limits.outbox_bytes_max", "namespace.payload", "namespaces.chat.payload"];
    for applied in [&["namespace.publish"][..], &[]] {
        let report = node.reload(changed).expect("is valid");
        assert_eq!(report, ReloadReport { applied: keys(applied), restart: keys(&waits) }, "also the second time");
        let [rules] = &node.rules(0)[..] else { panic!("one message") };
        assert_eq!(rules.resolve("chat:1").unwrap().1.payload, ringway_wire::ingest::PayloadKind::Json);
        assert_eq!(node.followed.0.lock().unwrap().as_deref(), Some("/connection/websocket"), "the running one");
        node.rules(1);
    }
    // A name that was away comes back with its payload kind.
    node.reload("").expect("is valid");
    let report = node.reload("[[namespaces]]\nname = \"chat\"\npayload = \"bytes\"\n").expect("is valid");
    assert_eq!(
        report,
        ReloadReport { applied: keys(&["namespaces.chat"]), restart: keys(&["namespaces.chat.payload"]) }
    );
}

#[test]
fn a_changed_secret_is_named_and_never_shown() {
    let key = std::env::temp_dir().join(format!("ringway-reload-key-{}", std::process::id()));
    fs::write(&key, "first").unwrap();
    let node = Node::start("", &[&format!("control.api_key_file={}", key.display())]);
    fs::write(&key, "second").unwrap();
    for _ in 0..2 {
        let report = node.reload("[ingest]\ntokens = [\"hunter2\"]\n").expect("is valid");
        assert_eq!(report.restart, keys(&["ingest.tokens", "control.api_key_file"]));
        assert!(!format!("{report:?}").contains("second") && !format!("{report:?}").contains("hunter2"));
    }
    fs::remove_file(&key).unwrap();
    let text = node.reload("").expect_err("the file is gone").to_string();
    assert!(text.contains("control.api_key_file"), "{text}");
}

#[test]
fn what_is_wrong_is_refused_as_a_whole() {
    let node = Node::start("[[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\n", &[]);
    let error = node
        .reload("shards = \"x\"\n[namespace]\nrecovery = true\nsubscribe = \"anyone\"\n[[namespaces]]\nname = \"a:b\"\nfoo = 1\n")
        .expect_err("is refused");
    let text = error.to_string();
    for words in
        ["shards: must be", "default namespace: recovery needs", "namespaces.foo: unknown key", "\"a:b\" contains"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    let missing = fs::remove_file(&node.file).map(|()| node.reloader.reload());
    assert!(missing.unwrap().expect_err("no file").to_string().contains("No such file"));
    assert!(node.rules(0).is_empty() && node.rules(1).is_empty() && node.followed.0.lock().unwrap().is_none());

    // The call-back may refuse, too, and then nothing has changed either.
    node.followed.1.store(true, Ordering::Relaxed);
    let open = "[namespace]\nsubscribe = \"anyone\"\n";
    assert!(node.reload(open).expect_err("is refused").to_string().contains("no such key"));
    assert!(node.rules(0).is_empty());
    node.followed.1.store(false, Ordering::Relaxed);
    let applied = node.reload(open).expect("is valid").applied;
    assert_eq!(applied, keys(&["namespace.subscribe", "namespaces.chat"]), "as if nothing had happened before");
}

#[test]
fn what_is_applied_must_fit_what_stays() {
    // Alone the file is right; but bytes and the personal namespace would wait for a restart.
    let node = Node::start("", &[]);
    let error = node.reload(
        "[client]\npersonal_channel = true\npersonal_namespace = \"direct\"\n[[namespaces]]\nname = \"direct\"\n",
    );
    assert_eq!(error.expect("needs no restart by itself").restart.len(), 2);

    let node = Node::start(
        "[client]\npersonal_channel = true\npersonal_namespace = \"direct\"\n[[namespaces]]\nname = \"direct\"\n",
        &[],
    );
    let text = node.reload("[client]\npersonal_channel = false\n").expect_err("is refused").to_string();
    assert!(text.contains("client.personal_namespace must be a configured namespace"), "{text}");
    let stays = "stay as they were until a restart: client.personal_channel, client.personal_namespace)";
    assert!(text.contains(stays), "{text}");

    let node = Node::start("[namespace]\npayload = \"bytes\"\n", &[]);
    let text = node.reload("[namespace]\ndeflate_bytes_min = 100\n").expect_err("is refused").to_string();
    assert!(text.contains("needs payload \"json\""), "{text}");
    assert!(node.rules(0).is_empty());
}

#[test]
fn a_full_queue_gets_the_newest_rules_once_it_has_room() {
    let node = Node::start("", &[]);
    for size in 1..=5 {
        let text = format!("[namespace]\nhistory_size = {size}\nhistory_ttl_ms = 1\n");
        node.reload(&text).expect("is valid");
        if size == 2 {
            assert_eq!(node.rules(1).len(), 2, "shard 1 has kept up");
            assert_eq!(node.rules(2).len(), 2, "so has the control plane");
            assert!(node.behind().is_empty());
        }
    }
    assert_eq!(node.behind(), [0, 1, 2], "three more than two places");
    let size = |rules: &Arc<Namespaces>| rules.resolve("a").unwrap().1.history_size;
    let sizes = |shard| node.rules(shard).iter().map(size).collect::<Vec<_>>();
    assert_eq!((sizes(0), sizes(1), sizes(2)), (vec![1, 2], vec![3, 4], vec![3, 4]));
    assert!(node.reloader.offer(&mut node.reloader.running()));
    assert_eq!((sizes(0), sizes(1), sizes(2), node.behind()), (vec![5], vec![5], vec![5], vec![]));
    assert!(node.reloader.offer(&mut node.reloader.running()));
    assert!(sizes(0).is_empty(), "given once");
}

#[test]
fn long_lists_are_cut_in_the_log() {
    assert_eq!(listed(&[]), "nothing");
    assert_eq!(listed(&keys(&["a", "b"])), "a, b");
    let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert!(listed(&many).ends_with("30, 31, and 68 more"));
}
