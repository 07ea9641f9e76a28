//! What ranks and their hub say to each other over TCP: frames of a length, a kind and a body, little-endian.

use std::sync::Arc;

use crate::types::{Error, Status};

/// Begins the first frame of a connection. The last letter is the version of what follows.
pub const MAGIC: [u8; 8] = *b"magihub1";

/// Tells the ranks of one communicator from everybody else's.
pub type Cookie = [u8; 16];

/// Longest body: an all-gather of some hundred ranks with a megabyte each.
pub const MAX_BODY: usize = 1 << 29;

/// Longest first frame: who is no rank is told by it.
pub const HELLO_BODY: usize = 8 + 16 + 4 + 4;

/// Stands for the arrival of all ranks where else the number of an all-gather stands.
pub const ARRIVAL: u64 = u64::MAX;

/// From a rank to the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    /// Who it is.
    Hello { cookie: Cookie, rank: u32, world: u32 },
    /// Its part of an all-gather.
    Gather { number: u64, bytes: Vec<u8> },
    /// It waited so many milliseconds for the others, in vain.
    Late { number: u64, waited: u64 },
    /// It ends the communicator, and this is what the others are told.
    End(Told),
    /// It goes, after so many exchanges with each rank.
    Leave { exchanges: Vec<u64> },
}

/// From the hub to a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// The rank is taken for what it says it is.
    Seated,
    /// All ranks are there.
    Welcome,
    /// Every rank's part of an all-gather.
    Gathered { number: u64, parts: Vec<Vec<u8>> },
    /// The communicator has ended.
    Ended(Told),
    /// A rank is gone, after so many exchanges with whoever is told.
    Left { rank: u32, exchanges: u64 },
}

/// An error that travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub status: i32,
    pub message: String,
}

impl Told {
    pub fn of(error: &Error) -> Told {
        Told {
            status: error.status as i32,
            message: error.message.clone(),
        }
    }

    /// The error as it was; a status that this version does not know is a failed communicator.
    pub fn error(&self) -> Error {
        let known = Status::from_i32(self.status).filter(|&s| s != Status::Ok);
        Error::new(known.unwrap_or(Status::CommFailed), self.message.clone())
    }
}

/// The next frame at the front of what was received.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Not all of it is there.
    Incomplete,
    /// Kind and body; the frame is this many bytes long.
    Frame { kind: u8, length: usize },
    /// Nothing that one of us sends.
    Foreign,
}

/// Looks at the front of `bytes` for a frame whose body is at most `longest`.
pub fn next(bytes: &[u8], longest: usize) -> Next {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else {
        return Next::Incomplete;
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length == 0 || length > longest + 1 {
        return Next::Foreign;
    }
    match rest.first() {
        Some(&kind) if rest.len() >= length => Next::Frame {
            kind,
            length: 4 + length,
        },
        _ => Next::Incomplete,
    }
}

/// The body of a frame of `length` bytes at the front of `bytes`.
pub fn body(bytes: &[u8], length: usize) -> &[u8] {
    &bytes[5..length]
}

/// A frame in the making.
struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Writer {
        Writer(vec![0, 0, 0, 0, kind])
    }

    fn put(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(self, number: u64) -> Writer {
        self.put(&number.to_le_bytes())
    }

    fn told(self, told: &Told) -> Writer {
        self.put(&told.status.to_le_bytes()).put(told.message.as_bytes())
    }

    fn done(mut self) -> Vec<u8> {
        let length = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

/// What is left of a body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn told(&mut self) -> Option<Told> {
        let status = self.take().map(i32::from_le_bytes)?;
        let message = String::from_utf8_lossy(std::mem::take(&mut self.0)).into_owned();
        Some(Told { status, message })
    }
}

impl Up {
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Up::Hello { cookie, rank, world } => Writer::new(1)
                .put(&MAGIC)
                .put(cookie)
                .put(&rank.to_le_bytes())
                .put(&world.to_le_bytes())
                .done(),
            Up::Gather { number, bytes } => Writer::new(2).number(*number).put(bytes).done(),
            Up::Late { number, waited } => Writer::new(3).number(*number).number(*waited).done(),
            Up::End(told) => Writer::new(4).told(told).done(),
            Up::Leave { exchanges } => {
                let each = exchanges.iter();
                each.fold(Writer::new(5), |w, &n| w.number(n)).done()
            }
        }
    }

    /// What a frame says; `None` when it is none of a rank's.
    pub fn read(kind: u8, body: &[u8]) -> Option<Up> {
        let mut body = Reader(body);
        let up = match kind {
            1 if body.take::<8>()? == MAGIC => Up::Hello {
                cookie: body.take()?,
                rank: body.word()?,
                world: body.word()?,
            },
            2 => Up::Gather {
                number: body.number()?,
                bytes: std::mem::take(&mut body.0).to_vec(),
            },
            3 => Up::Late {
                number: body.number()?,
                waited: body.number()?,
            },
            4 => Up::End(body.told()?),
            5 => {
                let (numbers, rest) = std::mem::take(&mut body.0).as_chunks::<8>();
                body.0 = rest;
                Up::Leave {
                    exchanges: numbers.iter().map(|n| u64::from_le_bytes(*n)).collect(),
                }
            }
            _ => return None,
        };
        body.0.is_empty().then_some(up)
    }
}

impl Down {
    /// Shared, because all ranks are told the same.
    pub fn to_bytes(&self) -> Arc<Vec<u8>> {
        Arc::new(match self {
            Down::Seated => Writer::new(101).put(&MAGIC).done(),
            Down::Welcome => Writer::new(102).done(),
            Down::Gathered { number, parts } => {
                let start = Writer::new(103).number(*number);
                let add = |w: Writer, p: &Vec<u8>| w.number(p.len() as u64).put(p);
                parts.iter().fold(start, add).done()
            }
            Down::Ended(told) => Writer::new(104).told(told).done(),
            Down::Left { rank, exchanges } => Writer::new(105)
                .put(&rank.to_le_bytes())
                .number(*exchanges)
                .done(),
        })
    }

    /// What a frame says; `None` when it is none of a hub's.
    pub fn read(kind: u8, body: &[u8]) -> Option<Down> {
        let mut body = Reader(body);
        let down = match kind {
            101 if body.take::<8>()? == MAGIC => Down::Seated,
            102 => Down::Welcome,
            103 => {
                let number = body.number()?;
                let mut parts = Vec::new();
                while !body.0.is_empty() {
                    let length = usize::try_from(body.number()?).ok()?;
                    parts.push(body.bytes(length)?.to_vec());
                }
                Down::Gathered { number, parts }
            }
            104 => Down::Ended(body.told()?),
            105 => Down::Left {
                rank: body.word()?,
                exchanges: body.number()?,
            },
            _ => return None,
        };
        body.0.is_empty().then_some(down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ups() -> Vec<Up> {
        vec![
            Up::Hello {
                cookie: [7; 16],
                rank: 3,
                world: 4,
            },
            Up::Gather {
                number: 9,
                bytes: vec![1, 2, 3],
            },
            Up::Gather {
                number: 10,
                bytes: vec![],
            },
            Up::Late {
                number: ARRIVAL,
                waited: 5000,
            },
            Up::End(Told::of(&Error::new(Status::Aborted, "rank 1 aborted"))),
            Up::Leave {
                exchanges: vec![77, 0],
            },
            Up::Leave { exchanges: vec![] },
        ]
    }

    fn downs() -> Vec<Down> {
        vec![
            Down::Seated,
            Down::Welcome,
            Down::Gathered {
                number: 2,
                parts: vec![vec![1], vec![], vec![2, 3]],
            },
            Down::Ended(Told::of(&Error::new(Status::Timeout, "too late"))),
            Down::Left {
                rank: 2,
                exchanges: 1,
            },
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for up in ups() {
            let bytes = up.to_bytes();
            let Next::Frame { kind, length } = next(&bytes, MAX_BODY) else {
                panic!("{up:?}")
            };
            assert_eq!(length, bytes.len());
            assert_eq!(Up::read(kind, body(&bytes, length)), Some(up));
        }
        for down in downs() {
            let bytes = down.to_bytes();
            let Next::Frame { kind, length } = next(&bytes, MAX_BODY) else {
                panic!("{down:?}")
            };
            assert_eq!(Down::read(kind, body(&bytes, length)), Some(down));
        }
        assert_eq!(ups()[0].to_bytes().len(), 5 + HELLO_BODY);
    }

    #[test]
    fn a_part_of_a_frame_is_no_frame_and_cut_bodies_are_foreign() {
        for up in ups() {
            let bytes = up.to_bytes();
            for cut in 0..bytes.len() {
                assert_eq!(next(&bytes[..cut], MAX_BODY), Next::Incomplete, "{up:?} {cut}");
            }
            if matches!(up, Up::Hello { .. } | Up::Late { .. } | Up::Leave { .. }) && bytes.len() > 5 {
                let kind = bytes[4];
                assert_eq!(Up::read(kind, &bytes[5..bytes.len() - 1]), None);
                assert_eq!(Up::read(kind, &[&bytes[5..], &[0]].concat()), None);
            }
        }
        assert_eq!(next(b"GET / HTTP/1.1\r\n", HELLO_BODY), Next::Foreign);
        assert_eq!(next(&[0; 8], HELLO_BODY), Next::Foreign);
        assert_eq!(Up::read(1, &[0; HELLO_BODY]), None, "another magic");
        assert_eq!(Up::read(101, &MAGIC), None);
        assert_eq!(Down::read(103, &[0; 9]), None);
        let unknown = Told {
            status: 12345,
            message: "new".to_owned(),
        };
        assert_eq!(unknown.error().status, Status::CommFailed);
    }
}
