use super::*;

const ARITHMETIC: Arithmetic = Arithmetic { params: 1000, attention: 10 };

fn weights(positions: Positions, policy: Attribution) -> Vec<(Phase, u64)> {
    let shares = positions.shares(policy, ARITHMETIC);
    let phase = |share: Share| match share.account {
        Account::Request(_, phase) => (phase, share.weight),
        Account::System(_) => panic!("a request's share"),
    };
    shares.map(phase).collect()
}

#[test]
fn positions_weigh_by_the_policy() {
    let mixed = Positions { ticket: Ticket(0), start: 4, len: 4, prefill: 3, sees_all: false };
    assert_eq!(weights(mixed, Attribution::Tokens), [(Phase::Prefill, 3), (Phase::Decode, 1)]);
    // Three rows that see 5, 6 and 7 positions, and one that sees 8.
    let flops = [(Phase::Prefill, 2 * 3 * 1000 + 4 * 10 * 18), (Phase::Decode, 2 * 1000 + 4 * 10 * 8)];
    assert_eq!(weights(mixed, Attribution::Flops), flops);
    let canvas = Positions { sees_all: true, ..mixed };
    assert_eq!(weights(canvas, Attribution::Flops)[1], (Phase::Decode, 2 * 1000 + 4 * 10 * 8));
    assert_eq!(weights(canvas, Attribution::Flops)[0], (Phase::Prefill, 2 * 3 * 1000 + 4 * 10 * 24));
    let whole: u64 = weights(mixed, Attribution::Equal).iter().map(|(_, weight)| weight).sum();
    let other = Positions { len: 300, prefill: 0, ..mixed };
    assert_eq!(weights(other, Attribution::Equal), [(Phase::Decode, whole)]);
    assert_eq!(weights(Positions { len: 3, ..mixed }, Attribution::Tokens), [(Phase::Prefill, 3)]);
    assert!(weights(Positions { len: 0, prefill: 0, ..mixed }, Attribution::Tokens).is_empty());
}
