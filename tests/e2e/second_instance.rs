//! Set-up: a server listens; another `ringway` is started on the same client port.
//! Claim: the second is refused with the holder's pid and an exit code that is not 0; the first is unharmed; a
//! planned hand-over (`--takeover`) is let in; once the port is free it can be taken.

use ringway_tests::{Client, Server};
use serde_json::json;

fn arguments(client: &str) -> [String; 3] {
    [format!("client.listen={client}"), "control.listen=127.0.0.1:0".into(), "ingest.listen=127.0.0.1:0".into()]
}

fn spawn(settings: &[String], more: &[&str]) -> Result<Server, ringway_tests::Failure> {
    let mut words = vec!["--dev"];
    for setting in settings {
        words.extend_from_slice(&["--set", setting]);
    }
    words.extend_from_slice(more);
    Server::spawn(&words)
}

#[test]
fn a_second_process_on_the_port_is_refused_and_told_who_holds_it() {
    let mut first = Server::start(&[]);
    let settings = arguments(&first.client.to_string());
    let failure = spawn(&settings, &[]).expect_err("the port is taken");
    assert!(failure.code.is_some_and(|code| code != 0), "{failure:?}");
    assert!(failure.stderr.contains(&first.pid.to_string()), "the holder's pid {} is missing: {failure:?}", first.pid);

    let mut client = Client::connect(&first);
    client.subscribe("still-here");
    first.publish("still-here", &json!(1));
    assert_eq!(client.publication("still-here").offset, 1);

    assert!(first.terminate().success());
    let second = spawn(&settings, &[]).unwrap_or_else(|failure| panic!("the port is free: {failure:?}"));
    assert_eq!(second.client, first.client);
}

#[test]
fn a_planned_hand_over_is_let_in() {
    let mut first = Server::start(&[]);
    let second = spawn(&arguments(&first.client.to_string()), &["--takeover"])
        .unwrap_or_else(|failure| panic!("--takeover: {failure:?}"));
    assert!(first.runs());
    assert!(first.terminate().success());
    // Now every new connection is the second's.
    let mut client = Client::connect(&second);
    client.subscribe("moved");
    second.publish("moved", &json!(1));
    assert_eq!(client.publication("moved").offset, 1);
}

#[test]
fn a_port_of_another_program_is_refused() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = other.local_addr().expect("address").to_string();
    let failure = spawn(&arguments(&address), &[]).expect_err("the port is taken");
    assert!(failure.code.is_some_and(|code| code != 0), "{failure:?}");
    assert!(failure.stderr.contains(&std::process::id().to_string()), "the holder's pid is missing: {failure:?}");
}
