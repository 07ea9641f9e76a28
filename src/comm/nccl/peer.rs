//! One connection of a hub.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use super::hub::{read_some, write_some};

pub(super) struct Peer {
    pub stream: TcpStream,
    /// Who it is, once it has said so.
    pub rank: Option<usize>,
    /// What came and was not dealt with.
    pub heard: Vec<u8>,
    /// What is to go out, and how much of the first of it has gone.
    unsaid: VecDeque<Arc<Vec<u8>>>,
    said: usize,
    pub since: Instant,
    /// The connection is over.
    pub ended: bool,
    /// It is to be over once everything is said.
    pub last_words: bool,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Peer {
        Peer {
            stream,
            rank: None,
            heard: Vec::new(),
            unsaid: VecDeque::new(),
            said: 0,
            since: Instant::now(),
            ended: false,
            last_words: false,
        }
    }

    /// Takes in what has come.
    pub fn fill(&mut self) {
        self.ended |= read_some(&mut self.stream, &mut self.heard);
    }

    /// Queues a frame.
    pub fn tell(&mut self, frame: &Arc<Vec<u8>>) {
        self.unsaid.push_back(Arc::clone(frame));
    }

    pub fn has_more(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// Sends as much as goes without waiting.
    pub fn flush(&mut self) {
        while let Some(frame) = self.unsaid.front() {
            match write_some(&mut self.stream, &frame[self.said..]) {
                None => {
                    self.ended = true;
                    self.unsaid.clear();
                }
                Some(n) if self.said + n == frame.len() => {
                    self.unsaid.pop_front();
                    self.said = 0;
                }
                Some(n) => {
                    self.said += n;
                    return;
                }
            }
        }
    }
}
