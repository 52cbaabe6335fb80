"""One network, five ways into an audit: from timm, torchvision and MONAI by name, and as a file: torch.export, ONNX, TorchScript.

pip install feathide timm onnx onnx2torch
"""

import warnings
from pathlib import Path
from tempfile import mkdtemp

import torch

from feathide import FeatureClassifier
from feathide.models.zoo import build
from feathide.models.loading import load_network

warnings.simplefilter("ignore")  # of the exporters
x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

for name in (
    "timm:test_resnet",
    "torchvision:resnet18",
    "monai:DenseNet(spatial_dims=2, block_config=(2, 2))",
):
    network = build(
        name, channels=1, outputs=2, size=(32, 32)
    ).eval()  # as `network: {arch: ...}` of a plan does
    out = FeatureClassifier(network, "last")(x)
    print(f"{name:55} logits {tuple(out.logits.shape)}, last layer {tuple(out.last.shape)}")

network, folder = build("tiny", channels=1, outputs=2).eval(), Path(mkdtemp())
batch = {"input": {0: torch.export.Dim("n", min=1, max=512)}}
torch.export.save(
    torch.export.export(network, (x,), dynamic_shapes=batch), folder / "net.pt2"
)
torch.onnx.export(
    network,
    (x,),
    folder / "net.onnx",
    dynamo=False,
    opset_version=17,
    keep_initializers_as_inputs=True,
    input_names=["x"],
    dynamic_axes={"x": {0: "n"}},
)
torch.jit.save(torch.jit.script(network), folder / "net.ts")

for file, layers in (
    ("net.pt2", "4.2"),
    ("net.onnx", "conv"),
    ("net.ts", ()),
):  # the layers of TorchScript cannot be watched
    same = FeatureClassifier(
        load_network(str(folder / file), trust=file != "net.onnx"), layers
    )(x)
    apart = float((same.logits - network(x)).abs().max())
    print(f"{file:55} differs by {apart:.0e}, layers: {', '.join(same.features) or 'none'}")
