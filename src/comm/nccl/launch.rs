//! Who this process is, as the program that started it says: torchrun, mpirun or srun.

use crate::types::{Error, Result, Status};

/// The variables that are looked at.
pub const VARIABLES: &[&str] = &[
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
];

/// One family of variables. The first whose rank is set is asked.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static [&'static str],
    local_size: Option<&'static str>,
}

/// In this order: torchrun may run below srun, and mpirun in a job of Slurm.
const LAUNCHERS: &[Launcher] = &[
    Launcher {
        name: "torchrun",
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: &["LOCAL_RANK"],
        local_size: None,
    },
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        local_size: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
    },
    Launcher {
        name: "PMI",
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"],
        local_size: Some("MPI_LOCALNRANKS"),
    },
    Launcher {
        name: "Slurm",
        rank: "SLURM_PROCID",
        world: "SLURM_NTASKS",
        local_rank: &["SLURM_LOCALID"],
        local_size: None,
    },
];

/// Port that stands for MASTER_PORT where nobody says which.
const USUAL_PORT: u16 = 29500;

/// What a launcher tells a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This process's rank.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// This process's number on its host, where that is said.
    pub local_rank: Option<usize>,
    /// The host of rank 0.
    pub host: String,
    /// Where rank 0 listens.
    pub port: u16,
    /// What the launcher calls the job; empty where it has no name.
    pub job: String,
}

fn error(message: String) -> Error {
    Error::new(Status::InvalidEnvironment, message)
}

/// The number in variable `name`; `None` where it is not set or empty.
fn number(get: &dyn Fn(&str) -> Option<String>, name: &str, most: u64) -> Result<Option<u64>> {
    let Some(text) = get(name).filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = text.parse().ok().filter(|&n: &u64| digits && n <= most);
    value.map(Some).ok_or_else(|| {
        error(format!(
            "{name} is {text:?}; it must be a whole number, 0 to {most}"
        ))
    })
}

impl Launch {
    /// Reads the variables by `get`. `port` (0: none) stands above MASTER_PORT.
    ///
    /// The port of rank 0 is MASTER_PORT + 1, because the launcher or the framework listens on MASTER_PORT itself; without
    /// MASTER_PORT it is 29501, and in a job of Slurm 20001 + the job's number modulo 20000.
    pub fn read(get: &dyn Fn(&str) -> Option<String>, port: u16) -> Result<Launch> {
        let set = |name: &str| get(name).is_some_and(|t| !t.is_empty());
        let launcher = LAUNCHERS.iter().find(|l| set(l.rank)).ok_or_else(|| {
            let names: Vec<String> = LAUNCHERS
                .iter()
                .map(|l| format!("{} ({})", l.rank, l.name))
                .collect();
            error(format!("no launcher: none of {} is set", names.join(", ")))
        })?;
        let need = |name| {
            number(get, name, u64::from(u32::MAX))?
                .ok_or_else(|| error(format!("{} is set, but {name} is not", launcher.rank)))
        };
        let (rank, world) = (need(launcher.rank)?, need(launcher.world)?);
        if rank >= world {
            let (r, w) = (launcher.rank, launcher.world);
            return Err(error(format!(
                "{r} is {rank}; it must be below {w}, which is {world}"
            )));
        }
        let mut local_rank = None;
        for name in launcher.local_rank {
            if let Some(found) = number(get, name, u64::from(u32::MAX))? {
                local_rank = Some(found as usize);
                break;
            }
        }
        let host = host(get, launcher, world)?;
        Ok(Launch {
            rank: rank as usize,
            world: world as usize,
            local_rank,
            host,
            port: if port == 0 { rule(get)? } else { port },
            job: ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"]
                .into_iter()
                .filter_map(get)
                .collect::<Vec<_>>()
                .join("/"),
        })
    }

    /// Which of `visible` devices this process takes.
    pub fn device(&self, visible: usize) -> Result<usize> {
        match self.local_rank {
            Some(local) if local < visible => Ok(local),
            // The launcher, or a script, has shown each process its own.
            _ if visible == 1 => Ok(0),
            None if self.world == 1 && visible > 0 => Ok(0),
            Some(local) => Err(Error::new(
                Status::NoDevice,
                format!(
                    "this is process {local} of its host, and it sees {visible} CUDA devices (CUDA_VISIBLE_DEVICES)"
                ),
            )),
            None => Err(error(format!(
                "the launcher does not say which process of its host this is, and it sees {visible} CUDA devices; set \
                 LOCAL_RANK"
            ))),
        }
    }

    /// What keeps the ranks of this job apart from those of another that meet at the same port by mistake.
    pub fn cookie(&self) -> [u8; 16] {
        let hash = |start: u64| {
            let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
            self.job.bytes().fold(start, step).to_le_bytes()
        };
        let mut cookie = [0; 16];
        cookie[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325));
        cookie[8..].copy_from_slice(&hash(0x6d61_6769_5f61_7474));
        cookie
    }
}

/// The port of rank 0 where the caller names none.
fn rule(get: &dyn Fn(&str) -> Option<String>) -> Result<u16> {
    if let Some(port) = number(get, "MASTER_PORT", 65535)? {
        return match port {
            0 => Err(error("MASTER_PORT is 0; it must be 1 to 65535".to_owned())),
            65535 => Ok(65534),
            port => Ok(port as u16 + 1),
        };
    }
    let job = number(get, "SLURM_JOB_ID", u64::MAX)?;
    Ok(job.map_or(USUAL_PORT + 1, |job| 20001 + (job % 20000) as u16))
}

/// The host of rank 0.
fn host(get: &dyn Fn(&str) -> Option<String>, launcher: &Launcher, world: u64) -> Result<String> {
    if let Some(host) = get("MASTER_ADDR").filter(|h| !h.is_empty()) {
        return Ok(host);
    }
    let local_size = match launcher.local_size {
        Some(name) => number(get, name, u64::from(u32::MAX))?,
        None => None,
    };
    if world == 1 || local_size == Some(world) {
        return Ok("127.0.0.1".to_owned());
    }
    let listed = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]
        .into_iter()
        .filter_map(get);
    listed.filter_map(|list| first_host(&list)).next().ok_or_else(|| {
        error(format!(
            "MASTER_ADDR is not set, and {} does not say where rank 0 runs",
            launcher.name
        ))
    })
}

/// The first host of a list of Slurm's, such as `gpu[03-05,09],login`.
fn first_host(list: &str) -> Option<String> {
    let mut name = String::new();
    let mut rest = list;
    loop {
        let at = rest.find(['[', ',']).unwrap_or(rest.len());
        name.push_str(&rest[..at]);
        match rest[at..].chars().next() {
            Some('[') => {
                let inside = &rest[at + 1..];
                let close = inside.find(']')?;
                let first = inside[..close].split([',', '-']).next()?;
                name.push_str(first);
                rest = &inside[close + 1..];
            }
            _ => break,
        }
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_slurm() {
        for (list, first) in [
            ("gpu07", Some("gpu07")),
            ("gpu07,gpu08", Some("gpu07")),
            ("gpu[03-05,09],login", Some("gpu03")),
            ("gpu[9]", Some("gpu9")),
            ("rack[2-3]n[01-04]", Some("rack2n01")),
            ("a-b[1,7].cluster", Some("a-b1.cluster")),
            ("", None),
            ("gpu[03", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
    }
}
