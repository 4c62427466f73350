"""Augmentation: an image follows from seed, epoch and row; every recipe key does what it says."""

import random
import sys
from dataclasses import replace

import numpy
import pytest
import torch

from finetune.data import augmentation, randaugment
from finetune.data.augmentation import augment, mix
from finetune.errors import UserError
from finetune.recipe import Augmentation

WARP = Augmentation(crop_area=0.5, flip=0.5, rotate=20, translate=0.1, scale=0.2, shear=10)
ALL = Augmentation(
    crop_area=0.5,
    flip=0.5,
    rotate=20,
    translate=0.1,
    scale=0.2,
    shear=10,
    randaugment_ops=2,
    erase=0.5,
)


def images(count, channels=1, height=28, width=28, levels=256):
    """Images (count, channels, height, width) of 8-bit values, as files hold them."""
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, height, width)
    return torch.randint(levels, shape, generator=generator) / (levels - 1)


def dot(count, side=29):
    """Black squares with one white pixel in the middle."""
    pixels = torch.zeros(count, 1, side, side)
    pixels[:, :, side // 2, side // 2] = 1
    return pixels


def centres(pixels):
    """Each image's centre of mass (count, 2), row and column, in pixels."""
    mass = pixels.sum((1, 2, 3))
    rows = (pixels.sum((1, 3)) * torch.arange(pixels.shape[2])).sum(1) / mass
    columns = (pixels.sum((1, 2)) * torch.arange(pixels.shape[3])).sum(1) / mass
    return torch.stack([rows, columns], dim=1)


def slants(pixels):
    """The tangent of the angle (count,) by which an upright line slants."""
    y = torch.arange(pixels.shape[2]) - (pixels.shape[2] - 1) / 2
    weights = pixels[:, 0]
    at = (weights * torch.arange(pixels.shape[3])).sum(2) / weights.sum(2)
    return (at * y).sum(1) / (y**2).sum()


# --- one image for a row ---------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize(
    "config", [WARP, ALL, Augmentation(erase=0.5)], ids=["warp", "all", "erase"]
)
def test_a_row_has_one_image_in_every_batch(config, channels):
    pixels, rows = images(48, channels), torch.arange(48) * 1000
    together = augment(pixels, rows, 2, 3, config)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    for part in [order[:1], order[1:12], order[12:]]:
        torch.testing.assert_close(augment(pixels[part], rows[part], 2, 3, config), together[part])
    # Without sums over a whole image there is nothing to round differently.
    if not config.randaugment_ops:
        alone = [augment(pixels[i : i + 1], rows[i : i + 1], 2, 3, config) for i in range(48)]
        assert torch.equal(torch.cat(alone), together)


def test_another_row_epoch_or_seed_is_another_image():
    pixels, rows = images(1).expand(8, -1, -1, -1), torch.arange(8)
    first = augment(pixels, rows, 0, 0, WARP)
    for other in [
        augment(pixels, rows + 8, 0, 0, WARP),
        augment(pixels, rows, 1, 0, WARP),
        augment(pixels, rows, 0, 1, WARP),
        first.roll(1, 0),
    ]:
        assert ((other - first).abs().amax((1, 2, 3)) > 0.1).all()


def test_an_evaluation_row_is_augmented_by_draws_of_its_own():
    pixels, rows = images(8), torch.arange(8)
    trained = augment(pixels, rows, 1, 0, ALL)
    tested = augment(pixels, rows, 1, 0, ALL, training=False)
    assert ((trained - tested).abs().amax((1, 2, 3)) > 0.01).all()
    training = torch.arange(8) % 2 == 0
    mixture = augment(pixels, rows, 1, 0, ALL, training=training)
    torch.testing.assert_close(mixture[::2], trained[::2])
    torch.testing.assert_close(mixture[1::2], tested[1::2])


def test_a_key_more_leaves_the_draws_of_the_others():
    pixels, rows = images(8), torch.arange(8)
    turned = augment(pixels, rows, 0, 0, Augmentation(rotate=30))
    both = augment(pixels, rows, 0, 0, Augmentation(rotate=30, erase=1))
    assert 0.6 < (both == turned).float().mean() < 0.99


def test_global_random_states_stay():
    def states():
        return torch.get_rng_state().tolist(), numpy.random.get_state(legacy=False)["state"][
            "key"
        ].tolist()

    config, before, plain = replace(ALL, mixup=0.2), states(), random.getstate()
    pixels, rows = images(8), torch.arange(8)
    first = augment(pixels, rows, 0, 0, config), *mix(pixels, rows, 8, rows, 0, 0, config)
    assert states() == before
    assert random.getstate() == plain
    torch.manual_seed(99)
    again = augment(pixels, rows, 0, 0, config), *mix(pixels, rows, 8, rows, 0, 0, config)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# --- what each key does ----------------------------------------------------------------------


def test_an_empty_config_changes_nothing():
    pixels, config = images(4), Augmentation()
    assert not augmentation.active(config)
    assert not augmentation.mixes(config)
    assert augment(pixels, torch.arange(4), 0, 0, config) is pixels


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_area", 0.5),
        ("flip", 1.0),
        ("rotate", 20.0),
        ("translate", 0.2),
        ("scale", 0.3),
        ("shear", 20.0),
        ("randaugment_ops", 4),
        ("erase", 1.0),
    ],
)
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_every_key_is_active_and_stays_in_range(key, value, channels):
    config = Augmentation(**{key: value})
    assert augmentation.active(config)
    assert not augmentation.mixes(config)
    # Only black and white, where any overshoot shows; sides that differ, where confusing them does.
    pixels = images(64, channels, height=20, width=26, levels=2)
    before = pixels.clone()
    out = augment(pixels, torch.arange(64), 0, 0, config)
    assert torch.equal(pixels, before)
    assert out.shape == pixels.shape
    assert out.dtype == pixels.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out != pixels).flatten(1).any(1).float().mean() > 0.8


def test_flip():
    pixels, rows = images(400, 3, 4, 4), torch.arange(400)
    always = augment(pixels, rows, 0, 0, Augmentation(flip=1))
    assert torch.equal(always, pixels.flip(-1))
    some = augment(pixels, rows, 0, 0, Augmentation(flip=0.25))
    flipped = (some == always).flatten(1).all(1)
    assert torch.equal(some[~flipped], pixels[~flipped])
    assert 0.18 < flipped.float().mean() < 0.32


@pytest.mark.parametrize("key", ["rotate", "translate", "scale", "shear"])
def test_a_tiny_warp_is_nearly_the_image(key):
    pixels = images(16, 3, height=20, width=26)
    out = augment(pixels, torch.arange(16), 0, 0, replace(Augmentation(), **{key: 1e-5}))
    torch.testing.assert_close(out, pixels, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "config", [Augmentation(crop_area=0.3), Augmentation(rotate=30)], ids=["crop", "rotate"]
)
def test_white_stays_no_more_than_white(config):
    # Interpolation weights add up to one and a rounding error.
    assert augment(torch.ones(256, 1, 29, 37), torch.arange(256), 0, 0, config).max() == 1


def test_rotate_turns_about_the_centre_and_no_further():
    config, rows = Augmentation(rotate=30), torch.arange(200)
    turned = augment(dot(200), rows, 0, 0, config)
    torch.testing.assert_close(turned[:, 0, 14, 14], torch.ones(200))
    torch.testing.assert_close(centres(turned), torch.full((200, 2), 14.0))
    column = torch.zeros(200, 1, 29, 41)
    column[:, :, 5:24, 20] = 1
    at = centres(augment(column, rows, 0, 0, config)[:, :, :14])
    angles = torch.rad2deg(torch.atan2(at[:, 1] - 20, 14 - at[:, 0]))
    assert angles.min() < -24
    assert angles.max() > 24
    assert angles.abs().max() < 33


def test_translate_moves_up_to_its_share():
    moved = augment(dot(200), torch.arange(200), 0, 0, Augmentation(translate=0.2))
    shift = (centres(moved) - 14) / 29
    assert shift.abs().max() <= 0.2 + 1e-4
    assert (shift.amax(0) > 0.18).all()
    assert (shift.amin(0) < -0.18).all()
    assert shift.T.corrcoef()[0, 1].abs() < 0.25


def test_scale_zooms_both_ways():
    pixels = torch.zeros(200, 1, 40, 40)
    pixels[:, :, 10:30, 10:30] = 1
    zoomed = augment(pixels, torch.arange(200), 0, 0, Augmentation(scale=0.5))
    sides = zoomed.sum((1, 2, 3)).sqrt() / 20
    assert 0.45 < sides.min() < 0.55
    assert 1.45 < sides.max() < 1.55
    torch.testing.assert_close(centres(zoomed), torch.full((200, 2), 19.5), atol=0.01, rtol=0)


def test_shear_slants_to_the_side():
    pixels = torch.zeros(200, 1, 21, 41)
    pixels[:, :, :, 20] = 1
    sheared = augment(pixels, torch.arange(200), 0, 0, Augmentation(shear=30))
    angles = torch.rad2deg(torch.atan(slants(sheared)))
    assert angles.abs().max() < 30.5
    assert angles.min() < -27
    assert angles.max() > 27
    torch.testing.assert_close(sheared.sum(3), pixels.sum(3), atol=0.01, rtol=0)


def test_a_crop_magnifies_a_part():
    # Brightness says where a pixel came from: its row in one channel, its column in another.
    height, width = 32, 48
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    pixels = torch.stack([y, x, torch.ones_like(x)]).expand(300, 3, height, width)
    out = augment(pixels, torch.arange(300), 0, 0, Augmentation(crop_area=0.25))
    # No black comes in at the edges.
    torch.testing.assert_close(out[:, 2], torch.ones_like(out[:, 2]))
    high = (out[:, 0, -8, 5] - out[:, 0, 7, 5]) * height / (height - 15)
    wide = (out[:, 1, 5, -8] - out[:, 1, 5, 7]) * width / (width - 15)
    area, aspect = high * wide, wide / high
    assert 0.24 < area.min() < 0.3
    assert 0.9 < area.max() < 1.01
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.34
    middle = out[:, :2, height // 2, width // 2]
    assert (middle.amin(0) < 0.35).all()
    assert (middle.amax(0) > 0.65).all()


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_erase_puts_noise_in_a_rectangle(channels):
    pixels, rows = torch.full((400, channels, 28, 36), 0.5), torch.arange(400)
    out = augment(pixels, rows, 0, 0, Augmentation(erase=1))
    changed = (out != pixels).any(1)
    share = changed.float().mean((1, 2))
    assert 0.01 < share.min() < 0.03
    assert 0.3 < share.max() < 0.37
    down, across = changed.any(2).sum(1), changed.any(1).sum(1)
    assert ((down * across) == changed.sum((1, 2))).all()
    # Every pixel's own turn: as often at the border as rectangles reach it.
    assert (changed.float().mean(0) > 0).all()
    noise = out[out != pixels]
    torch.testing.assert_close(noise.mean(), torch.tensor(0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(noise.std(), torch.tensor(12**-0.5), atol=0.01, rtol=0)
    some = augment(pixels, rows, 0, 0, Augmentation(erase=0.25))
    assert 0.18 < (some != pixels).flatten(1).any(1).float().mean() < 0.32


# --- RandAugment -----------------------------------------------------------------------------


def test_the_operations_are_drawn_evenly(monkeypatch):
    drawn, ways = [], []

    def note(name, pixels, strength, direction, enhance):
        drawn.append((name, len(pixels)))
        ways.append(direction)
        return pixels

    monkeypatch.setattr(randaugment, "operation", note)
    config = Augmentation(randaugment_ops=2)
    augment(torch.zeros(7000, 1, 1, 1), torch.arange(7000), 0, 0, config)
    counts = dict.fromkeys(randaugment.OPERATIONS, 0)
    for name, count in drawn:
        counts[name] += count
    assert counts.pop("identity") == 0
    assert len(counts) == 13
    # A thousand each, with a standard deviation of 30.
    assert all(880 < count < 1120 for count in counts.values()), counts
    assert torch.cat(ways).abs().unique().tolist() == [1]
    assert torch.cat(ways).mean().abs() < 0.03


@pytest.mark.parametrize("name", randaugment.OPERATIONS[3:])
def test_an_operation_grows_from_nothing_with_its_strength(name):
    from kornia import enhance

    pixels, way = images(8, 3) * 0.8, torch.tensor([-1.0, 1.0]).repeat(4).double()
    change = [
        (randaugment.operation(name, pixels, strength, way, enhance) - pixels).abs().mean()
        for strength in (0.0, 0.4, 1.0)
    ]
    assert change[0] < 1e-5
    assert 0.001 < change[1] < change[2]


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "rotate", "translate_x"])
def test_an_operation_goes_both_ways(name):
    from kornia import enhance

    pixels = images(1, 3).expand(2, -1, -1, -1) * 0.5
    way = torch.tensor([-1.0, 1.0]).double()
    less, more = randaugment.operation(name, pixels, 0.5, way, enhance)
    assert (less - more).abs().mean() > 0.01


def test_magnitude_zero_is_near_the_image():
    pixels, rows = images(300, 3, 20, 20), torch.arange(300)
    pixels[:, :, 0, 0], pixels[:, :, 0, 1] = 0, 1
    calm, strong = (
        augment(pixels, rows, 0, 0, Augmentation(randaugment_ops=2, randaugment_magnitude=m))
        for m in (0, 10)
    )
    # equalize and auto-contrast know no magnitude; the latter finds nothing to stretch here.
    equalized = 1 - (13 / 14) ** 2
    changed = ((calm - pixels).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert abs(changed - equalized) < 0.07
    assert ((strong - pixels).abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.8


def test_auto_contrast_stretches_and_leaves_a_blank():
    pixels = torch.stack([images(1)[0] * 0.5 + 0.2, torch.full((1, 28, 28), 0.3)])
    from kornia import enhance

    way = torch.ones(2).double()
    out = randaugment.operation("auto-contrast", pixels, 1.0, way, enhance)
    assert (out[0].min(), out[0].max()) == (0, 1)
    assert torch.equal(out[1], pixels[1])


def test_without_kornia_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(UserError, match=r"pip install 'finetune-recipes\[vision\]'"):
        augment(images(2), torch.arange(2), 0, 0, Augmentation(randaugment_ops=1))


# --- mixing ----------------------------------------------------------------------------------


def mixed(config, count=256, epoch=0, seed=0, rows=None):
    """Images of one value each, a class each: what is mixed can be read off."""
    rows = torch.arange(count) if rows is None else rows
    values = rows / (count - 1)
    pixels = values[:, None, None, None].expand(len(rows), 3, 12, 16)
    assert augmentation.mixes(config)
    return values, *mix(pixels, rows, count, rows, epoch, seed, config)


def test_mixup_blends_pixels_as_labels():
    values, pixels, shares = mixed(Augmentation(mixup=0.4))
    torch.testing.assert_close(shares.sum(1), torch.ones(256))
    assert ((shares > 0).sum(1) <= 2).all()
    assert shares.min() >= 0
    expected = (shares @ values)[:, None, None, None].expand_as(pixels)
    torch.testing.assert_close(pixels, expected)
    # Beta(0.4, 0.4): mean 1/2, variance 1 / (4 * (2 * 0.4 + 1)).
    kept = shares.diagonal()
    assert abs(kept.mean() - 0.5) < 0.08
    assert abs(kept.var() - 1 / 7.2) < 0.03


def test_cutmix_shares_are_the_areas():
    values, pixels, shares = mixed(Augmentation(cutmix=1.0))
    torch.testing.assert_close(shares.sum(1), torch.ones(256))
    own = (pixels == values[:, None, None, None])[:, 0]
    kept = own.float().mean((1, 2))
    torch.testing.assert_close(shares.diagonal(), kept)
    partner = shares.clone().fill_diagonal_(0).argmax(1)
    pasted = pixels == values[partner][:, None, None, None]
    assert (pasted[:, 0] | own).all()
    # What is not its own is a rectangle.
    other = ~own
    assert (other.any(1).sum(1) * other.any(2).sum(1) == other.sum((1, 2))).all()
    # Half the area on average, less what the border cuts off.
    assert 0.5 < kept.mean() < 0.8


def test_with_both_half_the_images_get_either():
    values, pixels, shares = mixed(Augmentation(mixup=1.0, cutmix=1.0), count=512)
    blended = (pixels != values[:, None, None, None]).flatten(1).all(1)
    own = (pixels == values[:, None, None, None]).flatten(1).any(1)
    assert (blended | own).all()
    assert 0.42 < blended.float().mean() < 0.58
    torch.testing.assert_close(shares @ values, pixels.mean((1, 2, 3)))


def test_partners_are_others_and_depend_on_the_batch_alone():
    config, rows = Augmentation(mixup=1.0), torch.arange(32)
    _, pixels, shares = mixed(config, 32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    _, shuffled, shares_shuffled = mixed(config, 32, rows=rows[order])
    assert torch.equal(shuffled, pixels[order])
    assert torch.equal(shares_shuffled, shares[order])
    partners = shares.clone().fill_diagonal_(0).argmax(1)
    assert sorted(partners.tolist()) == rows.tolist()
    assert (partners != rows).all()
    for other in [mixed(config, 32, epoch=1)[2], mixed(config, 32, seed=1)[2]]:
        assert (shares - other).abs().amax(1).gt(0.01).float().mean() > 0.8
