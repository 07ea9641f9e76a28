//! Placements that follow the sequence: blocks, zigzag and documents in turn.

use super::reach::Reaches;

/// Contiguous blocks of chunks, `pieces` of them; the first have one more where they do not divide evenly.
pub(super) fn blocks(chunks: usize, pieces: usize) -> Vec<u32> {
    let (base, extra) = (chunks / pieces, chunks % pieces);
    (0..pieces)
        .flat_map(|r| std::iter::repeat_n(r as u32, base + usize::from(r < extra)))
        .collect()
}

/// Of `2 * world` blocks, rank r has the blocks r and `2 * world - 1 - r`.
pub(super) fn zigzag(chunks: usize, world: usize) -> Vec<u32> {
    let pieces = 2 * world as u32;
    let fold = |piece: u32| piece.min(pieces - 1 - piece);
    blocks(chunks, 2 * world).into_iter().map(fold).collect()
}

/// Documents by falling area, the chunks of each in turn to the ranks, back and forth.
///
/// A document is what chunks share whose rows see keys from the same place on. Of several places in one chunk the
/// last counts: a document that ends in the chunk has most of its rows elsewhere.
pub(super) fn by_document(reaches: &Reaches, areas: &[i64], world: usize) -> Vec<u32> {
    let start = |c: usize| {
        let starts = reaches
            .0
            .iter()
            .filter_map(|(reach, _)| reach.begins_at(c as u32));
        starts.max().unwrap_or(i64::MAX)
    };
    let mut documents: Vec<(i64, i64, Vec<usize>)> = Vec::new();
    let mut order: Vec<(i64, usize)> = (0..areas.len()).map(|c| (start(c), c)).collect();
    order.sort_unstable();
    for (at, c) in order {
        match documents.last_mut() {
            Some((area, first, own)) if *first == at => {
                *area -= areas[c];
                own.push(c);
            }
            _ => documents.push((-areas[c], at, vec![c])),
        }
    }
    documents.sort_unstable();
    let mut owners = vec![0; areas.len()];
    let chunks = documents.iter().flat_map(|(_, _, own)| own);
    for (i, &c) in chunks.enumerate() {
        let (round, place) = (i / world, i % world);
        let rank = if round % 2 == 0 { place } else { world - 1 - place };
        owners[c] = rank as u32;
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zigzag_pairs_the_ends() {
        assert_eq!(zigzag(8, 2), [0, 0, 1, 1, 1, 1, 0, 0]);
        assert_eq!(zigzag(7, 2), [0, 0, 1, 1, 1, 1, 0]);
        assert_eq!(zigzag(3, 2), [0, 1, 1]);
        assert_eq!(blocks(5, 3), [0, 0, 1, 1, 2]);
    }
}
