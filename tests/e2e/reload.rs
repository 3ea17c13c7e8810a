//! Set-up: a server with a configuration file, clients on both shards and in both encodings; the file is rewritten and
//! the process gets SIGHUP.
//! Claim: no connection or subscription ends; new rules hold for new subscribes and publishes on every shard; a
//! namespace that is taken away keeps its subscribers and takes no new ones; a file that is wrong is refused as a whole,
//! with every problem in the log, and the old rules stay; what needs a restart is named and does not change.

use std::path::PathBuf;

use ringway_tests::client::Body;
use ringway_tests::{Client, Encoding, Server, eventually, eventually_is};
use serde_json::json;

/// A configuration file that is removed with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> File {
        let file = File(std::env::temp_dir().join(format!("ringway-e2e-{name}-{}.toml", std::process::id())));
        file.write(text);
        file
    }

    /// In one step, as an operator's tools should: half a file may be a valid one.
    fn write(&self, text: &str) {
        let beside = self.0.with_extension("new");
        std::fs::write(&beside, text).expect("the temporary folder is writable");
        std::fs::rename(&beside, &self.0).expect("a rename within a folder");
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Rewrites the file and waits until the server has read it. The rules are then in every shard's queue.
fn reload(server: &Server, file: &File, text: &str, metric: &str) {
    let before = server.metrics().sum(metric, &[]);
    file.write(text);
    server.signal("HUP");
    eventually_is(metric, before + 1, || server.metrics().sum(metric, &[]));
    eventually_is("shards behind", 0, || server.metrics().sum("ringway_reload_shards_behind", &[]));
}

/// Some clients on each shard and in each encoding, all in `channel`.
fn clients(server: &Server, channel: &str) -> Vec<Client> {
    (0..12)
        .map(|n| {
            let encoding = if n % 2 == 0 { Encoding::Json } else { Encoding::Protobuf };
            let mut client = Client::connect_as(server, encoding);
            client.subscribe(channel);
            client
        })
        .collect()
}

/// Asks until a shard has taken the rules out of its queue: 0 for a result, otherwise the error's code.
fn eventually_answers(client: &mut Client, command: &str, parameters: &[(&str, &str)], code: u64) {
    eventually(&format!("{command} {parameters:?} is answered {code}"), || {
        let answer = match client.request(command, parameters) {
            Body::Error(error) => error.code,
            _ => 0,
        };
        if answer == 0 && command == "subscribe" {
            // So that it can be asked again.
            client.request("unsubscribe", &parameters[..1]);
        }
        answer == code
    });
}

const CHAT: &str = "[namespace]\ncatch_all = false\n[[namespaces]]\nname = \"chat\"\nsubscribe = \"anyone\"\n";

#[test]
fn rules_change_under_live_connections() {
    let file = File::new("rules", CHAT);
    let path = file.0.display().to_string();
    let server = Server::start(&["--shards", "2", "--config", &path]);
    let mut clients = clients(&server, "chat:room");
    for client in &mut clients {
        assert_eq!(client.refused("publish", &[("channel", "chat:room"), ("data", "1")]).code, 103);
        assert_eq!(client.refused("subscribe", &[("channel", "news:today")]).code, 102);
    }
    let with_news =
        format!("{CHAT}publish = \"subscriber\"\n[[namespaces]]\nname = \"news\"\nsubscribe = \"anyone\"\n");
    reload(&server, &file, &with_news, "ringway_reloads_total");
    // Publishing is open once the rules say so; who may is the session's business.
    for client in &mut clients {
        eventually_answers(client, "subscribe", &[("channel", "news:today")], 0);
    }

    // Open to everyone, then to nobody.
    let closed = CHAT.replace("\"anyone\"", "\"backend\"");
    reload(&server, &file, &closed, "ringway_reloads_total");
    for client in &mut clients {
        eventually_answers(client, "subscribe", &[("channel", "chat:other")], 103);
        eventually_answers(client, "subscribe", &[("channel", "news:today")], 102);
        assert_eq!(client.refused("publish", &[("channel", "news:today"), ("data", "1")]).code, 102);
    }
    // Nobody has lost what it had.
    server.publish("chat:room", &json!({ "still": "here" }));
    for client in &mut clients {
        assert_eq!(client.publication("chat:room").data, br#"{"still":"here"}"#);
        client.assert_alive();
    }
    eventually_is("open", clients.len() as u64, || server.metrics().sum("ringway_connections_open", &[]));
    assert_eq!(server.metrics().sum("ringway_closes_total", &[]), 0);
}

#[test]
fn a_namespace_that_is_gone_keeps_its_subscribers_until_it_is_back() {
    let file = File::new("gone", CHAT);
    let path = file.0.display().to_string();
    let server = Server::start(&["--shards", "2", "--config", &path]);
    let mut clients = clients(&server, "chat:room");
    reload(&server, &file, "[namespace]\ncatch_all = false\n", "ringway_reloads_total");
    for client in &mut clients {
        eventually_answers(client, "subscribe", &[("channel", "chat:other")], 102);
        eventually_answers(client, "publish", &[("channel", "chat:room"), ("data", "1")], 102);
    }
    reload(&server, &file, CHAT, "ringway_reloads_total");
    for client in &mut clients {
        eventually_answers(client, "subscribe", &[("channel", "chat:other")], 0);
    }
    server.publish("chat:room", &json!(1));
    for client in &mut clients {
        assert_eq!(client.publication("chat:room").data, b"1");
    }
}

#[test]
fn a_wrong_file_is_refused_and_the_old_rules_stay() {
    let file = File::new("wrong", CHAT);
    let path = file.0.display().to_string();
    let mut server = Server::start(&["--config", &path]);
    let mut clients = clients(&server, "chat:room");
    for wrong in [
        "[namespace]\nsubscribe = \"nobody\"\ncatch_all = 3\n[[namespaces]]\nname = \"chat\"\n",
        "[namespace]\nrecovery_mode = \"cache\"\nrecovery = false\n[[namespaces]]\nname = \"chat\"\n",
        "[namespace\n",
        "limits.outbox_bytes_max = 4096\n",
    ] {
        reload(&server, &file, wrong, "ringway_reloads_refused_total");
    }
    std::fs::remove_file(&file.0).expect("is there");
    server.signal("HUP");
    eventually_is("refused", 5, || server.metrics().sum("ringway_reloads_refused_total", &[]));
    for words in [
        "namespace.subscribe: must be",
        "namespace.catch_all: must be",
        "needs recovery",
        "not valid TOML",
        "No such file",
    ] {
        eventually(&format!("the log says {words:?}"), || server.stderr().contains(words));
    }
    assert_eq!(server.metrics().sum("ringway_reloads_total", &[]), 0);
    for client in &mut clients {
        client.subscribe("chat:other");
        assert_eq!(client.refused("subscribe", &[("channel", "news:today")]).code, 102);
    }
    // And a good one is taken again, with what waits for a restart named.
    let moved = format!("[client]\nwebsocket_path = \"/elsewhere\"\n{CHAT}");
    reload(&server, &file, &moved, "ringway_reloads_total");
    let waits = "msg=\"needs a restart\" keys=client.websocket_path";
    eventually("the log names what waits for a restart", || server.stderr().contains(waits));
    Client::connect(&server).assert_alive();
    drop(clients);
    assert!(server.terminate().success(), "SIGHUP has not changed what SIGTERM means");
}

#[test]
fn many_reloads_at_once_end_with_the_last() {
    let chat = format!("{CHAT}publish = \"anyone\"\n");
    let file = File::new("many", &chat);
    let path = file.0.display().to_string();
    // Queues of two places, so that some rules find no room.
    let server = Server::start(&["--shards", "3", "--config", &path, "--set", "lane.capacity_batches=2"]);
    let mut clients = clients(&server, "chat:room");
    for n in 0..50 {
        file.write(&format!("{chat}[[namespaces]]\nname = \"n{n}\"\nsubscribe = \"anyone\"\n"));
        server.signal("HUP");
    }
    // Signals may be merged, but not the last one.
    for client in &mut clients {
        eventually_answers(client, "subscribe", &[("channel", "n49:a")], 0);
        assert_eq!(client.refused("subscribe", &[("channel", "n48:a")]).code, 102);
    }
    // By a client: the control plane would be refused while such a queue is full.
    clients[0].publish("chat:room", "1");
    for client in &mut clients {
        assert_eq!(client.publication("chat:room").data, b"1");
    }
}
