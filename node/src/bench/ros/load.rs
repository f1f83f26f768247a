//! Background requests that keep all lanes of the node in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use serde::Serialize;

use super::door::PATIENCE;
use crate::ros::{AskClient, Question, RosError, RosOptions};

/// Tokens of an answer: long, so that few answers begin and end meanwhile.
const MAX_TOKENS: u32 = 128;

/// Clients that ask again as soon as they are answered; they end when this is dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    since: Instant,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    tokens: AtomicU64,
}

/// What the load was.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadReport {
    /// Lanes of the node.
    pub lanes: usize,
    /// Background requests open at any time.
    pub open_requests: usize,
    /// Threads that compute beside the node.
    pub busy_threads: usize,
    /// Background requests sent.
    pub sent: u64,
    /// Answered.
    pub answered: u64,
    /// Never answered.
    pub lost: u64,
    /// Tokens a second of their answers: what the node had to do besides.
    pub tok_s: f64,
}

impl Load {
    /// Starts `num_clients` clients that find the node of `ros`.
    ///
    /// # Errors
    /// As [`AskClient::connect`].
    pub fn start(ros: &RosOptions, num_clients: usize, question: &Question) -> Result<Self, RosError> {
        let client = Arc::new(AskClient::connect(ros, PATIENCE)?);
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let question = Question {
            priority_class: "background".into(),
            max_tokens: MAX_TOKENS,
            deadline: crate::ros::RosDuration::default(),
            ..question.clone()
        };
        let start = |_| {
            let (client, question) = (Arc::clone(&client), question.clone());
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            std::thread::spawn(move || ask_on(&client, &question, &counts, &stop))
        };
        let clients = (0..num_clients).map(start).collect();
        Ok(Self { stop, counts, since: Instant::now(), clients })
    }

    /// Ends all clients, each with its last answer, and says what they did.
    #[must_use]
    pub fn finish(mut self) -> LoadReport {
        let open_requests = self.clients.len();
        self.stop_and_join();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (sent, answered) = (count(&self.counts.sent), count(&self.counts.answered));
        LoadReport {
            open_requests,
            sent,
            answered,
            lost: sent - answered,
            tok_s: count(&self.counts.tokens) as f64 / self.since.elapsed().as_secs_f64(),
            ..LoadReport::default()
        }
    }

    fn stop_and_join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join(); // nothing in it panics
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

fn ask_on(client: &AskClient, question: &Question, counts: &Counts, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        match client.ask(question, PATIENCE) {
            Ok(answer) => {
                counts.answered.fetch_add(1, Ordering::Relaxed);
                counts.tokens.fetch_add(answer.num_tokens.into(), Ordering::Relaxed);
            }
            Err(error) => tracing::warn!("a background request: {error}"),
        }
    }
}
