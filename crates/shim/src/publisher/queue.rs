//! The events that wait for containerd.

use std::collections::VecDeque;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::topics::TASK_EXIT_EVENT_TOPIC;

/// Ordinary events that wait at most.
const LIMIT: usize = 2048;
/// Exits that wait at most; a node without containerd for so long has other worries.
const EXIT_LIMIT: usize = 4 * LIMIT;

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<ForwardRequest>,
    /// Lost since the last line in the log.
    lost: u64,
}

impl Queue {
    /// Appends. A full queue gives up its oldest event that is no exit, or the new one.
    pub(super) fn push(&mut self, request: ForwardRequest) {
        if self.waiting.len() >= LIMIT {
            match self.waiting.iter().position(|waiting| !is_exit(waiting)) {
                Some(oldest) if is_exit(&request) => {
                    self.waiting.remove(oldest);
                    self.lose();
                }
                None if is_exit(&request) && self.waiting.len() < EXIT_LIMIT => {}
                _ => return self.lose(),
            }
        }
        self.waiting.push_back(request);
    }

    /// Takes the oldest.
    pub(super) fn pop(&mut self) -> Option<ForwardRequest> {
        let request = self.waiting.pop_front();
        if self.lost > 0 && self.waiting.len() < LIMIT {
            log::error!(lost = self.lost; "events lost: containerd was away for too long");
            self.lost = 0;
        }
        request
    }

    fn lose(&mut self) {
        self.lost += 1;
    }
}

fn is_exit(request: &ForwardRequest) -> bool {
    request.envelope.topic == TASK_EXIT_EVENT_TOPIC
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::MessageField;
    use containerd_shim_protos::shim::event::Envelope;

    use super::*;

    fn request(topic: &str, n: usize) -> ForwardRequest {
        let envelope = Envelope {
            topic: topic.into(),
            namespace: n.to_string(),
            ..Envelope::default()
        };
        ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        }
    }

    #[test]
    fn on_overflow_exits_stay_and_the_rest_is_counted() {
        let mut queue = Queue::default();
        for n in 0..LIMIT {
            queue.push(request("/tasks/start", n));
        }
        queue.push(request("/tasks/start", 9000));
        assert_eq!((queue.waiting.len(), queue.lost), (LIMIT, 1));
        for n in 0..LIMIT + 3 {
            queue.push(request(TASK_EXIT_EVENT_TOPIC, n));
        }
        assert_eq!(queue.lost, 1 + LIMIT as u64);
        let mut exits = Vec::new();
        while let Some(request) = queue.pop() {
            assert!(is_exit(&request));
            exits.push(request.envelope.namespace.parse::<usize>().unwrap());
        }
        assert_eq!(exits, (0..LIMIT + 3).collect::<Vec<_>>());
        assert_eq!(queue.lost, 0);
    }

    #[test]
    fn even_exits_are_bounded() {
        let mut queue = Queue::default();
        for n in 0..=EXIT_LIMIT {
            queue.push(request(TASK_EXIT_EVENT_TOPIC, n));
        }
        assert_eq!((queue.waiting.len(), queue.lost), (EXIT_LIMIT, 1));
    }
}
