//! What launchers say in the environment.

use std::collections::BTreeMap;

use magi_attn::comm::nccl::Launch;
use magi_attn::comm::nccl::launch::VARIABLES;
use magi_attn::types::env::TABLE;
use magi_attn::types::{Result, Status};
use proptest::prelude::*;

fn read(variables: &[(&str, &str)]) -> Result<Launch> {
    let map: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Launch::read(&|name| map.get(name).map(|t| (*t).to_owned()), 0)
}

fn launch(rank: usize, world: usize, local: Option<usize>, host: &str, port: u16, job: &str) -> Launch {
    Launch {
        rank,
        world,
        local_rank: local,
        host: host.to_owned(),
        port,
        job: job.to_owned(),
    }
}

const TORCHRUN: &[(&str, &str)] = &[
    ("RANK", "5"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("MASTER_ADDR", "node0"),
    ("MASTER_PORT", "4000"),
    ("TORCHELASTIC_RUN_ID", "run"),
];
const MPIRUN: &[(&str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "2"),
    ("OMPI_COMM_WORLD_SIZE", "4"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "2"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
];
const HYDRA: &[(&str, &str)] = &[
    ("PMI_RANK", "1"),
    ("PMI_SIZE", "2"),
    ("MPI_LOCALRANKID", "1"),
    ("MPI_LOCALNRANKS", "2"),
];
const SRUN: &[(&str, &str)] = &[
    ("SLURM_PROCID", "9"),
    ("SLURM_NTASKS", "16"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_STEP_NODELIST", "gpu[03-04]"),
    ("SLURM_JOB_NODELIST", "other"),
    ("SLURM_JOB_ID", "1234567"),
    ("SLURM_STEP_ID", "0"),
];

#[test]
fn each_launcher_is_understood() {
    assert_eq!(read(TORCHRUN), Ok(launch(5, 8, Some(1), "node0", 4001, "run")));
    assert_eq!(read(MPIRUN), Ok(launch(2, 4, Some(2), "127.0.0.1", 29501, "")));
    assert_eq!(read(HYDRA), Ok(launch(1, 2, Some(1), "127.0.0.1", 29501, "")));
    let port = 20001 + (1234567 % 20000) as u16;
    assert_eq!(read(SRUN), Ok(launch(9, 16, Some(1), "gpu03", port, "1234567/0")));
}

#[test]
fn the_innermost_launcher_counts() {
    let mut both = SRUN.to_vec();
    both.extend(MPIRUN);
    assert_eq!(read(&both).unwrap().world, 4);
    both.extend(TORCHRUN);
    assert_eq!(read(&both).unwrap().world, 8);
    // srun --mpi=pmi2 gives PMI's names without a number on the host.
    let mut pmi = SRUN.to_vec();
    pmi.extend([("PMI_RANK", "9"), ("PMI_SIZE", "16")]);
    assert_eq!(read(&pmi).unwrap().local_rank, Some(1));
    // A step of Slurm without MASTER_ADDR, by torchrun.
    let mut inside = SRUN.to_vec();
    inside.extend([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", "65535")]);
    assert_eq!(read(&inside), Ok(launch(0, 2, None, "gpu03", 65534, "1234567/0")));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let without = |name: &str| {
        let left: Vec<_> = TORCHRUN.iter().copied().filter(|(n, _)| *n != name).collect();
        read(&left)
    };
    let with = |name: &str, text: &str| {
        let mut all: Vec<_> = TORCHRUN.to_vec();
        all.retain(|(n, _)| *n != name);
        all.push((name, text));
        // The text must live as long as the list.
        read(&all)
    };
    for (result, parts) in [
        (
            read(&[]),
            vec!["no launcher", "RANK (torchrun)", "SLURM_PROCID (Slurm)"],
        ),
        (without("WORLD_SIZE"), vec!["RANK is set, but WORLD_SIZE is not"]),
        (without("MASTER_ADDR"), vec!["MASTER_ADDR is not set", "torchrun"]),
        (
            with("RANK", "8"),
            vec!["RANK is 8", "below WORLD_SIZE, which is 8"],
        ),
        (with("RANK", "-1"), vec!["RANK is \"-1\""]),
        (with("RANK", "+1"), vec!["RANK is \"+1\""]),
        (with("WORLD_SIZE", "8 "), vec!["WORLD_SIZE is \"8 \""]),
        (with("LOCAL_RANK", "one"), vec!["LOCAL_RANK is \"one\""]),
        (with("MASTER_PORT", "65536"), vec!["MASTER_PORT is \"65536\""]),
        (with("MASTER_PORT", "0"), vec!["MASTER_PORT is 0"]),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.status, Status::InvalidEnvironment);
        for part in parts {
            assert!(error.message.contains(part), "{part}: {error}");
        }
    }
    assert_eq!(without("MASTER_PORT").unwrap().port, 29501);
    // An empty variable is one that is not set.
    assert_eq!(with("LOCAL_RANK", "").unwrap().local_rank, None);
}

#[test]
fn a_port_in_the_config_stands_above_the_rule() {
    let get = |name: &str| {
        let found = TORCHRUN.iter().find(|(n, _)| *n == name);
        found.map(|(_, t)| (*t).to_owned())
    };
    assert_eq!(Launch::read(&get, 777).unwrap().port, 777);
}

#[test]
fn devices_of_a_host() {
    let of = |local, world, visible| launch(0, world, local, "h", 1, "").device(visible);
    assert_eq!(of(Some(3), 8, 4), Ok(3));
    assert_eq!(of(Some(3), 8, 1), Ok(0), "each process sees its own");
    assert_eq!(of(None, 8, 1), Ok(0));
    assert_eq!(of(None, 1, 4), Ok(0));
    let error = of(Some(4), 8, 4).unwrap_err();
    assert_eq!(error.status, Status::NoDevice);
    assert!(error.message.contains("process 4") && error.message.contains("sees 4"));
    assert!(of(None, 8, 4).unwrap_err().message.contains("set LOCAL_RANK"));
    assert!(of(Some(0), 8, 0).is_err() && of(None, 1, 0).is_err());
}

#[test]
fn every_variable_that_is_read_is_in_the_table() {
    for name in VARIABLES {
        assert!(TABLE.iter().any(|v| v.name == *name), "{name}");
    }
    let asked = std::cell::RefCell::new(Vec::new());
    for family in [TORCHRUN, MPIRUN, HYDRA, SRUN] {
        let get = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            let found = family.iter().find(|(n, _)| *n == name);
            found.map(|(_, t)| (*t).to_owned())
        };
        Launch::read(&get, 0).unwrap();
    }
    for name in asked.borrow().iter() {
        assert!(VARIABLES.contains(&name.as_str()), "{name}");
    }
}

proptest! {
    #[test]
    fn whatever_stands_there_is_read_or_refused(
        values in proptest::collection::vec(
            (0..VARIABLES.len(), prop_oneof!["[0-9]{0,6}", "[a-z\\[\\],0-9-]{0,12}", ".{0,8}"]),
            0..12,
        )
    ) {
        let map: BTreeMap<&str, String> = values.iter().map(|(i, t)| (VARIABLES[*i], t.clone())).collect();
        match Launch::read(&|name| map.get(name).cloned(), 0) {
            Ok(l) => {
                prop_assert!(l.rank < l.world && l.port != 0 && !l.host.is_empty());
                prop_assert_eq!(l.cookie(), l.clone().cookie());
            }
            Err(e) => prop_assert_eq!(e.status, Status::InvalidEnvironment),
        }
    }

    #[test]
    fn good_numbers_come_through(world in 1usize..5000, at in 0usize..5000, port in 1u16..65535, local in 0usize..16) {
        let rank = at % world;
        let texts = [rank.to_string(), world.to_string(), local.to_string(), port.to_string()];
        let l = read(&[
            ("RANK", &texts[0]),
            ("WORLD_SIZE", &texts[1]),
            ("LOCAL_RANK", &texts[2]),
            ("MASTER_PORT", &texts[3]),
            ("MASTER_ADDR", "h"),
        ]).unwrap();
        prop_assert_eq!(l, launch(rank, world, Some(local), "h", port + 1, ""));
    }

    #[test]
    fn jobs_keep_apart(a in "[a-z0-9]{0,10}", b in "[a-z0-9]{0,10}") {
        let of = |job: &str| launch(0, 1, None, "h", 1, job).cookie();
        prop_assert_eq!(of(&a) == of(&b), a == b);
    }
}
