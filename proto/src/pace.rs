//! How much of a transfer may be under way. What is under way when a link breaks is lost and sent again, so a slow line is
//! given little, in small pieces, and a fast one what a stream's window holds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::{CHUNK_BYTES, STREAM_WINDOW_BYTES};

/// The smallest pieces. On its way a piece takes time itself, which only a fast line can be given more of.
const PIECE_BYTES: u64 = 8 << 10;

/// What may be under way on any line: some pieces arrive, some travel, some wait.
const LEAST_BYTES: u64 = 5 * PIECE_BYTES;

/// What a stream's window holds, whatever the line takes.
const MOST_BYTES: u64 = STREAM_WINDOW_BYTES as u64;

/// A line of more bytes a second is given [`MOST_BYTES`], which it carries again within 27 ms.
const FAST: f64 = 10e6;

/// How long pieces may wait on their way behind those before them, so that the line is busy while either side is late: this,
/// or the shortest time that one takes over [`QUEUE_PART`], if that is longer.
const QUEUE: Duration = Duration::from_millis(5);

/// See [`QUEUE`]; longer lines vary more.
const QUEUE_PART: u32 = 4;

/// After so long the shortest time is taken anew: the line may lead elsewhere by now.
const SHORTEST_LASTS: Duration = Duration::from_secs(30);

/// Says, to the sender of an artifact, when the next piece may go.
///
/// In each round (a window sent after the last change) the shortest time from sending a piece until it is acknowledged, over
/// the shortest of late, tells how long all waited behind others. Above [`QUEUE`] the window shrinks in proportion, below it
/// grows by up to half a piece; and by half for as long as not even the last pieces of a window waited. The same thought as
/// in TCP Vegas (Brakmo and Peterson, 1995) and LEDBAT (RFC 6817), above all buffers of the system and of what lies between;
/// that the shortest time is taken anew, of a piece that goes alone, is from BBR (Cardwell et al., 2016).
#[derive(Debug)]
pub struct Pace {
    size: u64,
    sent: u64,
    received: u64,
    window: u64,
    /// Of a piece, and when that was seen.
    shortest: Option<(Duration, Instant)>,
    /// The next piece goes alone.
    alone: bool,
    /// Pieces have waited: the line is known.
    waited: bool,
    pieces: VecDeque<Piece>,
    round: Round,
}

/// What was seen since the window changed.
#[derive(Debug)]
struct Round {
    /// Bytes that had been sent.
    from: u64,
    shortest: Duration,
    longest: Duration,
    /// Whether the window held the sender back.
    limited: bool,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    at: Instant,
    /// Nothing else was under way.
    alone: bool,
}

impl Pace {
    /// For an artifact of `size` bytes of which `received` are there.
    pub fn new(received: u64, size: u64) -> Self {
        let received = received.min(size);
        Self {
            size,
            sent: received,
            received,
            window: LEAST_BYTES,
            shortest: None,
            alone: false,
            waited: false,
            pieces: VecDeque::new(),
            round: Round::from(received),
        }
    }

    /// Whether everything was sent.
    pub fn is_sent(&self) -> bool {
        self.sent == self.size
    }

    /// Whether a piece may go now.
    pub fn has_room(&mut self, now: Instant) -> bool {
        self.alone |= self.shortest.is_some_and(|(_, seen)| now.saturating_duration_since(seen) > SHORTEST_LASTS);
        let window = if self.alone { self.piece() } else { self.window };
        let fits = self.sent - self.received + self.next() <= window;
        self.round.limited |= !fits;
        fits && !self.is_sent()
    }

    /// Takes the next piece if one may go; gives its length in bytes, at most [`CHUNK_BYTES`].
    pub fn send(&mut self, now: Instant) -> Option<usize> {
        if !self.has_room(now) {
            return None;
        }
        let (length, alone) = (self.next(), self.sent == self.received);
        self.sent += length;
        self.pieces.push_back(Piece { end: self.sent, at: now, alone });
        usize::try_from(length).ok()
    }

    /// The length of pieces.
    fn piece(&self) -> u64 {
        if self.window < MOST_BYTES {
            (self.window / 8).clamp(PIECE_BYTES, 2 * PIECE_BYTES)
        } else {
            CHUNK_BYTES as u64
        }
    }

    /// The length of the next one, which may be the last.
    fn next(&self) -> u64 {
        self.piece().min(self.size - self.sent)
    }

    /// Hears that so many bytes of the artifact have arrived. What cannot be is not believed.
    pub fn acknowledge(&mut self, received: u64, now: Instant) {
        self.received = self.received.max(received.min(self.sent));
        while let Some(piece) = self.pieces.pop_front_if(|piece| piece.end <= self.received) {
            let took = now.saturating_duration_since(piece.at);
            let anew = self.alone && piece.alone;
            if anew || self.shortest.is_none_or(|(shortest, _)| took <= shortest) {
                self.shortest = Some((took, now));
                self.alone = false;
            }
            if piece.end > self.round.from {
                self.round.shortest = self.round.shortest.min(took);
                self.round.longest = self.round.longest.max(took);
            }
        }
        // The last piece may not have fitted into the window.
        if self.received + self.piece() <= self.round.from + self.window {
            return;
        }
        let Some((shortest, _)) = self.shortest else { return };
        let queue = QUEUE.max(shortest / QUEUE_PART);
        let wait = self.round.shortest.saturating_sub(shortest);
        self.waited |= self.round.longest.saturating_sub(shortest) > queue;
        let window = self.window as f64;
        let next = if window > FAST * self.round.shortest.as_secs_f64() {
            MOST_BYTES as f64
        } else if wait > queue {
            window * (shortest + queue).div_duration_f64(self.round.shortest)
        } else if !self.round.limited {
            window
        } else if self.waited {
            window + PIECE_BYTES as f64 * (queue - wait).div_duration_f64(2 * queue)
        } else {
            window * 1.5
        };
        self.window = (next as u64).clamp(LEAST_BYTES, MOST_BYTES);
        self.round = Round::from(self.sent);
    }
}

impl Round {
    fn from(sent: u64) -> Self {
        Self { from: sent, shortest: Duration::MAX, longest: Duration::ZERO, limited: false }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// Sends over a line of so many bytes a second, and so late an answer at a time. Gives the seconds it took, and the most
    /// bytes that were under way.
    fn over(size: u64, rate: f64, late: impl Fn(f64) -> f64) -> (f64, u64) {
        let (began, mut pace) = (Instant::now(), Pace::new(0, size));
        let (mut line, mut now, mut most) = (0.0f64, 0.0f64, 0);
        let mut arriving = VecDeque::new();
        loop {
            while let Some(length) = pace.send(began + Duration::from_secs_f64(now)) {
                line = line.max(now) + length as f64 / rate;
                arriving.push_back((line + late(now), pace.sent));
            }
            most = most.max(pace.sent - pace.received);
            let Some((at, received)) = arriving.pop_front() else { return (now, most) };
            now = at;
            pace.acknowledge(received, began + Duration::from_secs_f64(now));
        }
    }

    #[test]
    fn a_slow_line_has_about_a_chunk_under_way_and_is_never_idle() {
        for (rate, late) in [(5e5, 0.0), (5e5, 0.001), (5e5, 0.02), (5e5, 0.04), (1e6, 0.04), (5e6, 0.004)] {
            let (took, most) = over(10_000_000, rate, |_| late);
            assert!(most <= 70_000, "{most} bytes with {rate} B/s, {late} s");
            assert!(took < 1.05 * 1e7 / rate + late, "{took} s with {rate} B/s, {late} s");
        }
    }

    #[test]
    fn a_fast_or_long_line_has_what_it_needs() {
        for (rate, late) in [(1e9, 0.0), (1e8, 0.0005), (12.5e6, 0.01), (1e6, 0.15), (25e6, 0.2)] {
            let (took, most) = over(50_000_000, rate, |_| late);
            let (ideal, held) = (50e6 / rate, MOST_BYTES as f64);
            // A line that holds more than the window waits for answers.
            let ideal = ideal.max(50e6 / held * (late + CHUNK_BYTES as f64 / rate));
            assert!(took < 1.1 * ideal + 10.0 * late, "{took} s, at best {ideal} s, {most} bytes under way");
        }
    }

    #[test]
    fn a_line_that_leads_elsewhere_is_known_anew() {
        let moved = |now: f64| if now < 5.0 { 0.01 } else { 0.06 };
        let (took, _) = over(500_000_000, 5e6, moved);
        let (of_such_a_line, _) = over(500_000_000, 5e6, |_| 0.06);
        assert!(took < 1.3 * of_such_a_line, "{took} s, {of_such_a_line} s on a line that was so from the start");
    }

    #[test]
    fn a_wait_shrinks_the_window_and_it_grows_again() {
        let mut now = Instant::now();
        let mut pace = Pace::new(0, u64::MAX / 2);
        let mut turns = |count, took: Duration| {
            for _ in 0..count {
                while pace.send(now).is_some() {}
                now += took;
                pace.acknowledge(pace.sent, now);
            }
            pace.window
        };
        assert_eq!(turns(10, Duration::from_millis(10)), MOST_BYTES);
        assert_eq!(turns(2, Duration::from_secs(60)), LEAST_BYTES);
        assert_eq!(turns(60, Duration::from_millis(10)), MOST_BYTES);
    }

    #[test]
    fn a_sender_that_is_not_held_back_gets_no_larger_window() {
        let mut now = Instant::now();
        let mut pace = Pace::new(0, u64::MAX / 2);
        for _ in 0..20 {
            pace.send(now);
            now += Duration::from_millis(10);
            pace.acknowledge(pace.sent, now);
        }
        assert_eq!(pace.window, LEAST_BYTES);
    }

    proptest! {
        /// Whatever the other side says, pieces follow each other to the end, and no more is under way than a window.
        #[test]
        fn all_is_sent_once_whatever_is_acknowledged(
            (from, size) in (0u64..3_000_000, 0u64..3_000_000),
            answers in prop::collection::vec((any::<u64>(), 0u64..100_000), 0..50),
        ) {
            let mut now = Instant::now();
            let (mut pace, mut sent) = (Pace::new(from, size), from);
            let mut answers = answers.into_iter();
            while !pace.is_sent() {
                while let Some(length) = pace.send(now) {
                    prop_assert!(length > 0 && length <= CHUNK_BYTES);
                    sent += length as u64;
                }
                prop_assert!(pace.sent - pace.received <= MOST_BYTES);
                let (received, micros) = answers.next().unwrap_or((sent, 100));
                now += Duration::from_micros(micros);
                pace.acknowledge(received, now);
            }
            prop_assert_eq!(sent, from.max(size));
            prop_assert_eq!(pace.send(now), None);
        }
    }

    #[test]
    fn nothing_is_left_to_send_of_what_is_there() {
        let mut pace = Pace::new(7, 7);
        assert!(pace.is_sent() && pace.send(Instant::now()).is_none());
        pace.acknowledge(u64::MAX, Instant::now());
        assert_eq!(pace.pieces.front().map(|piece| piece.end), None);
        assert_eq!(Pace::new(0, 1).send(Instant::now()).unwrap(), 1);
    }
}
