//! How many keys cross between hosts, and how many stay inside one.

use super::needs::Needs;
use super::placement::Placement;
use super::side::SidePlacement;
use super::staging::Staging;
use super::stats::sent;
use super::work::Work;
use crate::types::{AttnShape, Config, HostStage, Mask, Mesh, Ranges, Result, Side};

/// Keys that travel in a forward pass, by rank: between hosts, and inside them. Over two levels, what a rank passes on
/// inside its host counts there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostVolume {
    /// How ranks lie on hosts.
    pub mesh: Mesh,
    /// Keys that each rank sends to other hosts.
    pub sent_inter: Vec<i64>,
    /// Keys that each rank sends to ranks of its host.
    pub sent_intra: Vec<i64>,
    /// Keys that each rank receives from other hosts.
    pub received_inter: Vec<i64>,
    /// Keys that each rank receives from ranks of its host.
    pub received_intra: Vec<i64>,
    /// Keys that would cross hosts if each went straight to every rank that needs it.
    pub one_level: i64,
}

impl HostVolume {
    /// The volume of `mask` on `placement`, over two levels if `config.hierarchical_comm` says so. `mesh` is for as many
    /// ranks as the placement.
    ///
    /// `Status::InvalidArgument` when totals differ or a degree is outside -1 to 8.
    pub fn new(
        mask: &Mask,
        placement: &Placement,
        shape: &AttnShape,
        config: &Config,
        mesh: Mesh,
    ) -> Result<HostVolume> {
        placement.check_mask(mask)?;
        let needs = Needs::new(mask, placement, None);
        let groups = match Work::both(mask, placement, shape, config) {
            // In which stage a key travels makes no difference where there is one level only.
            [Some(work), _] => work.keys.iter().map(|keys| vec![keys.clone()]).collect(),
            _ => {
                // Only what is fetched counts here.
                let config = Config {
                    bwd_hide_tail_reduce: HostStage::First,
                    ..*config
                };
                let [forward, _] = Staging::both(mask, placement, &needs.remote, shape, &config)?;
                forward.groups
            }
        };
        let two_level = config.hierarchical_comm;
        Ok(HostVolume::of(placement.side(Side::K), mesh, &groups, two_level))
    }

    /// The volume of keys that rank r fetches in stage i: `groups[r][i]`.
    pub(super) fn of(
        side: &SidePlacement,
        mesh: Mesh,
        groups: &[Vec<Ranges>],
        two_level: bool,
    ) -> HostVolume {
        let keys = Meshed::new(side, mesh);
        let world = side.world();
        let mut volume = HostVolume {
            mesh,
            sent_inter: vec![0; world],
            sent_intra: vec![0; world],
            received_inter: vec![0; world],
            received_intra: vec![0; world],
            one_level: 0,
        };
        let stages = groups.first().map_or(0, Vec::len);
        for stage in 0..stages {
            let fetched: Vec<&Ranges> = groups.iter().map(|g| &g[stage]).collect();
            volume.add_stage(&keys, &fetched, two_level);
        }
        volume
    }

    /// Keys that each rank sends, and receives.
    pub(super) fn by_rank(&self) -> [Vec<i64>; 2] {
        let both = |a: &[i64], b: &[i64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
        [
            both(&self.sent_inter, &self.sent_intra),
            both(&self.received_inter, &self.received_intra),
        ]
    }

    /// Keys that cross hosts, each counted once for every rank it goes to.
    pub fn inter(&self) -> i64 {
        self.received_inter.iter().sum()
    }

    /// Keys that go from rank to rank inside hosts.
    pub fn intra(&self) -> i64 {
        self.received_intra.iter().sum()
    }

    /// Adds what travels when rank r fetches `fetched[r]`.
    fn add_stage(&mut self, keys: &Meshed<'_>, fetched: &[&Ranges], two_level: bool) {
        let own_host = |r: usize| &keys.hosts[self.mesh.host(r)];
        let inside: Vec<Ranges> = (0..fetched.len())
            .map(|r| fetched[r].intersect(own_host(r)))
            .collect();
        let outside: Vec<Ranges> = (0..fetched.len())
            .map(|r| fetched[r].subtract(own_host(r)))
            .collect();
        add(&mut self.sent_intra, sent(keys.side, &references(&inside)));
        add(&mut self.received_intra, inside.iter().map(Ranges::tokens));
        self.one_level += outside.iter().map(Ranges::tokens).sum::<i64>();
        if two_level {
            self.add_two_levels(keys, &outside);
        } else {
            add(&mut self.sent_inter, sent(keys.side, &references(&outside)));
            add(&mut self.received_inter, outside.iter().map(Ranges::tokens));
        }
    }

    /// Adds keys of other hosts, which come to a gateway once and go on from there. `outside[r]`: those of rank r.
    fn add_two_levels(&mut self, keys: &Meshed<'_>, outside: &[Ranges]) {
        let Mesh { inter, intra } = self.mesh;
        for host in 0..inter {
            let ranks = host * intra..(host + 1) * intra;
            let here = references(&outside[ranks.clone()]);
            let crossing: Ranges = here.iter().flat_map(|r| r.iter().copied()).collect();
            let from = sent(keys.side, &[&crossing]);
            let passed_on = sent(keys.side, &here);
            for (owner, (once, often)) in from.into_iter().zip(passed_on).enumerate() {
                let gateway = host * intra + owner % intra;
                self.sent_inter[owner] += once;
                self.received_inter[gateway] += once;
                // Less what the gateway keeps itself, which comes off below.
                self.sent_intra[gateway] += often;
            }
            for (rank, wanted) in ranks.zip(here) {
                let kept = wanted.intersect(&keys.columns[rank % intra]).tokens();
                self.sent_intra[rank] -= kept;
                self.received_intra[rank] += wanted.tokens() - kept;
            }
        }
    }
}

fn references(list: &[Ranges]) -> Vec<&Ranges> {
    list.iter().collect()
}

fn add(to: &mut [i64], from: impl IntoIterator<Item = i64>) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
}

/// Keys by host, and by number on the host.
struct Meshed<'a> {
    side: &'a SidePlacement,
    hosts: Vec<Ranges>,
    columns: Vec<Ranges>,
}

impl Meshed<'_> {
    fn new(side: &SidePlacement, mesh: Mesh) -> Meshed<'_> {
        let of = |ranks: &mut dyn Iterator<Item = usize>| -> Ranges {
            ranks.flat_map(|r| side.runs(r).iter().copied()).collect()
        };
        Meshed {
            side,
            hosts: (0..mesh.inter)
                .map(|h| of(&mut (h * mesh.intra..(h + 1) * mesh.intra)))
                .collect(),
            columns: (0..mesh.intra)
                .map(|c| of(&mut (0..mesh.inter).map(|h| h * mesh.intra + c)))
                .collect(),
        }
    }
}
