"""Seeds: the same for the same thing, another for another, within what torch's CPU generator tells
apart."""

import itertools

import torch

from octavo._seeds import seed_of, seeded


def test_a_seed_is_that_of_its_numbers_in_their_order() -> None:
    numbers = [
        (),
        (0,),
        (1,),
        (0, 1),
        (1, 0),
        (0, 0, 1),
        (1, 11),
        (11, 1),
        (-1,),
        (0, -1),
        (1 << 16, 0),
        (1 << 32, 0),
    ]
    seeds = [seed_of(*some) for some in numbers]
    assert seeds == [seed_of(*some) for some in numbers]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_tells_seeds_apart() -> None:
    """It keeps 32 bits of a seed: those that differ only beyond would draw alike."""
    seeds = [
        seed_of(seed, index)
        for seed, index in itertools.product((0, 1, 1 << 16, (1 << 32) - 1), range(4))
    ]
    assert all(0 <= seed < 1 << 32 for seed in seeds)
    drawn = {
        int(torch.randint(1 << 62, (), generator=torch.Generator().manual_seed(seed)))
        for seed in seeds
    }
    assert len(drawn) == len(seeds)


def test_a_seeded_block_draws_the_same_and_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(4, generator=torch.Generator().manual_seed(3)))
