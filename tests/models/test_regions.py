"""Features over regions of the prediction."""

import pytest
import torch
from torch import nn

from feathide.errors import InputError
from feathide.models.classifier import FeatureClassifier
from feathide.models.regions import Around, Structures, dilated, pooled_over
from worlds import dense


@pytest.mark.parametrize("shape", dense.SHAPES)
def test_features_of_regions_are_means_over_them(shape: tuple[int, ...]) -> None:
    classifier, x = dense.small(shape), dense.blobs(shape)
    out = classifier(x)
    with torch.no_grad():
        h = classifier.model.first(x)  # the following ReLU works in place
    labels = out.predicted
    for name, mask in {
        "a": labels == 1,
        "b-rim": dilated(labels == 2, 1) & (labels != 2),
    }.items():
        f = out.features[f"first@{name}"]
        for i in range(len(x)):
            values = h[i][:, mask[i]]
            if values.shape[1]:
                assert torch.allclose(f[i], values.mean(1))
            else:
                assert f[i].isnan().all()
    assert torch.allclose(out.features["first"], h.flatten(2).mean(2))
    plain = FeatureClassifier(classifier.model, ["first", "second"])(x)
    for name, f in plain.features.items():
        assert torch.allclose(out.features[name], f)
    assert list(out.features)[-1] == "second"


def test_regions_of_a_label_divide_the_image() -> None:
    z = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    regions = Structures({"a": 1}, rim=1)
    masks = regions.masks(z, (9, 8))
    assert regions.names == ("a", "a-rim", "rest")
    assert torch.equal(masks.sum(1), torch.ones(2, 9, 8))


def test_an_empty_region_has_no_feature_and_no_slope() -> None:
    h = torch.ones(1, 2, 4, 4, requires_grad=True)
    masks = torch.zeros(1, 2, 8, 8)
    masks[:, 1, :3] = 1
    f = pooled_over(h, masks)
    assert f[0, 0].isnan().all() and f[0, 1].tolist() == [1.0, 1.0]
    (grad,) = torch.autograd.grad(torch.where(f.isnan(), 0, f).sum(), h)
    assert grad.isfinite().all() and grad[0, 0, 3].abs().sum() == 0 < grad[0, 0, 0].sum()


def test_a_ball_lies_around_each_landmark() -> None:
    maps = torch.zeros(1, 2, 9, 9)
    maps[0, 0, 2, 2] = maps[0, 1, 6, 6] = 1
    masks = Around(["p", "q"], radius=1).masks(maps, (9, 9))
    assert masks.sum((2, 3)).tolist() == [[5.0, 5.0, 71.0]] and masks[0, 0, 2, 2] == 1
    same = Around(["p", "q"], radius=1).masks(
        torch.tensor([[[2.0, 2.0], [6.0, 6.0]]]), (9, 9)
    )
    assert torch.equal(masks, same)


def test_regions_that_the_network_lacks_are_refused() -> None:
    x = dense.blobs((14, 12))
    net = dense.small((14, 12)).model
    with pytest.raises(InputError, match="labels of structures must be 0 to 2"):
        FeatureClassifier(net, ["first"], regions=Structures({"c": 3}))(x)
    with pytest.raises(InputError, match="regions need a network that labels every voxel"):
        flat = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ).eval()
        FeatureClassifier(flat.double(), ["0"], regions=Structures({"a": 1}))(x)
    with pytest.raises(InputError, match="whole outputs of layers, got a compiled network"):
        FeatureClassifier(net, ["first"], regions=Structures({"a": 1}), compile="eager")


def test_uncertainty_is_that_of_all_draws_at_once() -> None:
    x = dense.blobs((14, 12), 2)
    found = dense.small((14, 12), dropout_samples=5)(x)
    assert found.uncertainty is not None and found.stochastic is None
    net = dense.small((14, 12)).model
    draws = []
    for s in range(5):
        masks = torch.rand((5, 6, 7, 6), generator=torch.Generator().manual_seed(0))
        keep = masks[s] >= 0.3
        handle = net.drop.register_forward_hook(
            lambda _m, args, _o, keep=keep: args[0] * keep / 0.7
        )
        draws.append(net(x).softmax(1))
        handle.remove()
    variance = torch.stack(draws).var(0, correction=0).mean(1)  # (N, *S)
    assert torch.allclose(found.uncertainty[:, 0], variance.flatten(1).mean(1).log())
    own = variance[0][found.predicted[0] == 1].mean().log()
    assert torch.allclose(found.uncertainty[0, 1], own)


def test_a_last_convolution_takes_the_place_of_dropout() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    out = FeatureClassifier(net, [], dropout_samples=4)(torch.rand(2, 1, 6, 6))
    assert out.uncertainty is not None and out.uncertainty.isfinite().all()
    deeper = nn.Sequential(*net, nn.Tanh()).eval()
    with pytest.raises(InputError, match="dropout draws of a dense network need"):
        FeatureClassifier(deeper, [], dropout_samples=4)(torch.rand(2, 1, 6, 6))
