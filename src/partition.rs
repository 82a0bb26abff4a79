//! Key → partition. Pure. Kafka's client chooses the partition; this only foretells its choice, so
//! that records of a partition which takes nothing can wait without the others.
//!
//! The rule is the Java client's (`org.apache.kafka.common.utils.Utils.murmur2`), which librdkafka's
//! `murmur2_random` follows for every record with a key.

/// The partition of `key` in a topic of `partitions` partitions; 0 if it has none.
#[must_use]
pub fn of_key(key: &[u8], partitions: i32) -> i32 {
    let positive = (murmur2(key) & 0x7fff_ffff).cast_signed();
    positive.checked_rem(partitions).unwrap_or(0)
}

fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Kafka's keys are shorter than 2 GiB
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let (words, rest) = key.as_chunks::<4>();
    let mut hash = words.iter().fold(SEED ^ length, |hash, word| {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        hash.wrapping_mul(M) ^ (k ^ (k >> 24)).wrapping_mul(M)
    });
    if !rest.is_empty() {
        let bytes = rest
            .iter()
            .rev()
            .fold(0, |all, b| (all << 8) | u32::from(*b));
        hash = (hash ^ bytes).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_java_clients_choice() {
        let vectors = include_str!("../tests/vectors/java_murmur2.txt");
        let mut seen = 0;
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let row: Vec<&str> = line.split_whitespace().collect();
            let digits: Vec<char> = row[0].trim_start_matches('-').chars().collect();
            let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
            let key: Vec<u8> = digits.chunks(2).map(|pair| byte(pair).unwrap()).collect();
            for (column, partitions) in [(2, 4), (3, 8), (4, 12), (5, 50)] {
                assert_eq!(
                    of_key(&key, partitions).to_string(),
                    row[column],
                    "{}",
                    row[0]
                );
            }
            seen += 1;
        }
        assert!(seen > 20);
        assert_eq!(of_key(b"a", 0), 0);
    }
}
