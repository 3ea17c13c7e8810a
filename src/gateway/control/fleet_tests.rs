//! Nodes that list channels for each other, over an engine that the test plays: some answer, some do not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::*;
use crate::control::call_queue;

const WAIT_MS: u64 = 400;

/// What each node's engine knows: which nodes live, and where what is said to them goes.
#[derive(Default)]
struct Engine {
    nodes: Vec<Described>,
    news: BTreeMap<u32, mpsc::Sender<News>>,
    is_away: bool,
    /// Parts that are lost, of those that come to node 1.
    lost: Vec<u32>,
}

impl Engine {
    fn ask(&self, request: Request) -> Result<Answer, Refusal> {
        match request {
            _ if self.is_away => Err(Refusal::Unavailable),
            Request::Nodes => Ok(Answer::Nodes(self.nodes.clone())),
            Request::Tell(Tell { subject: Subject::Nodes, to: Audience::Node(to), body }) => {
                let Some(news) = self.news.get(&to) else { return Ok(Answer::Told(0)) };
                let is_lost =
                    matches!(serde_json::from_slice(&body), Ok(Word::Listed(part)) if self.lost.contains(&part.part));
                if !is_lost {
                    news.try_send(News::Told(body)).expect("there is room");
                }
                Ok(Answer::Told(1))
            }
            _ => Ok(Answer::Done),
        }
    }
}

/// A node that is called `n<generation>` and has these channels.
fn node(
    engine: &Arc<Mutex<Engine>>,
    generation: u32,
    channels: Vec<(String, u32)>,
) -> (Arc<Fleet>, Arc<BackplaneMetrics>) {
    let (calls, mut asked) = call_queue();
    let metrics = Arc::<BackplaneMetrics>::default();
    let fleet = Fleet::new(calls, Arc::clone(&metrics), format!("n{generation}"), WAIT_MS);
    let (to, news) = mpsc::channel(NEWS_MAX);
    to.try_send(News::Registered(generation)).expect("there is room");
    engine.lock().expect("no panic").news.insert(generation, to);
    lives(engine, generation, &format!("n{generation}"));
    tokio::spawn(Arc::clone(&fleet).run(news, || b"{}".to_vec()));
    let engine = Arc::clone(engine);
    tokio::spawn(async move {
        while let Some(call) = asked.recv().await {
            match call {
                Call::Backplane { request, reply } => {
                    let _ = reply.send(engine.lock().expect("no panic").ask(request));
                }
                Call::Channels { pattern, reply, .. } => {
                    let found = channels.iter().filter(|(name, _)| name.contains(&pattern));
                    let channels = found.map(|(name, clients)| (name.as_str().into(), u64::from(*clients)));
                    let total = channels.clone().count() as u64;
                    let _ = reply.send(Ok(ChannelsListed { channels: channels.collect(), total }));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    (fleet, metrics)
}

fn lives(engine: &Arc<Mutex<Engine>>, generation: u32, name: &str) {
    let body = format!("{{\"name\":\"{name}\",\"of a later version\":1}}").into_bytes().into();
    engine.lock().expect("no panic").nodes.push(Described { generation, age_ms: 7, body });
}

fn channels(named: &[(&str, u32)]) -> Vec<(String, u32)> {
    named.iter().map(|(name, clients)| ((*name).to_string(), *clients)).collect()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

/// Its news have been taken.
async fn settled() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn the_channels_of_all_nodes_are_summed() {
    run(async {
        let engine = Arc::new(Mutex::new(Engine::default()));
        let (one, metrics) = node(&engine, 1, channels(&[("chat:a", 2), ("news", 9)]));
        let many: Vec<_> = (0..9_000).map(|n| (format!("chat:{n:030}"), 1)).chain(channels(&[("chat:a", 5)])).collect();
        let _two = node(&engine, 2, many);
        let _three = node(&engine, 3, channels(&[("chat:b", 1)]));
        settled().await;
        let listed = one.list("chat:".into(), 100).await.expect("is listed");
        assert!(listed.missing.is_empty() && !listed.engine_unreachable, "{:?}", listed.missing);
        assert_eq!((listed.channels.len(), listed.total), (9_002, 9_003));
        assert_eq!((listed.channels["chat:a"], listed.channels["chat:b"]), (7, 1));
        assert_eq!(metrics.get(Number::NodesMissing), 0);
        assert!(one.questions.lock().expect("no panic").is_empty());
    });
}

#[test]
fn who_does_not_answer_is_named_and_does_not_count() {
    run(async {
        let engine = Arc::new(Mutex::new(Engine::default()));
        let (one, metrics) = node(&engine, 1, channels(&[("chat:a", 2)]));
        let many: Vec<_> = (0..9_000).map(|n| (format!("chat:{n:030}"), 1)).collect();
        let _two = node(&engine, 2, many);
        let _three = node(&engine, 3, channels(&[("chat:a", 1)]));
        // One whose inbox nobody has, one that never says a word, and an earlier start of one that answers.
        lives(&engine, 4, "gone");
        lives(&engine, 5, "silent");
        let (to, _nobody) = mpsc::channel(10);
        engine.lock().expect("no panic").news.insert(5, to);
        lives(&engine, 0, "n3");
        // Of the second node's parts the second is lost.
        engine.lock().expect("no panic").lost = vec![1];
        settled().await;
        let listed = one.list(String::new(), 100).await.expect("is listed");
        assert_eq!(listed.missing, ["gone", "n2", "silent"]);
        assert_eq!(listed.channels, BTreeMap::from([("chat:a".into(), 3)]));
        assert_eq!(metrics.get(Number::NodesMissing), 3);
        engine.lock().expect("no panic").is_away = true;
        let listed = one.list(String::new(), 100).await.expect("is listed");
        assert!(listed.engine_unreachable);
        assert_eq!(listed.channels, BTreeMap::from([("chat:a".into(), 2)]));
        assert!(one.others().await.is_none());
        assert_eq!(metrics.get(Number::NodesUnknown), 2);
    });
}

#[test]
fn one_question_too_many_is_refused_and_what_cannot_be_read_is_counted() {
    run(async {
        let engine = Arc::new(Mutex::new(Engine::default()));
        let (one, metrics) = node(&engine, 1, Vec::new());
        let (to, _parts) = mpsc::channel(1);
        let open: Vec<_> =
            (0..QUESTIONS_MAX as u64).map(|n| one.open(100 + n, to.clone()).expect("there is room")).collect();
        settled().await;
        assert_eq!(one.list(String::new(), 1).await.err(), Some(CallError::Busy));
        assert_eq!(metrics.get(Number::NodeQuestionsRefused), 1);
        drop(open);
        assert!(one.list(String::new(), 1).await.is_ok());
        one.told(b"no JSON");
        one.told(br#"{"listed":{"from":2,"question":7,"part":0,"is_last":true,"is_busy":false,"channels":[]}}"#);
        assert_eq!(metrics.get(Number::NodeAnswersDropped), 2);
    });
}
