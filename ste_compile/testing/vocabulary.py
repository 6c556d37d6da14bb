"""What the statements of random programs are made of: dtypes, shapes, arguments, operations and layers, as source text."""

from __future__ import annotations

DTYPES = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")
# The last dimension and the second of images are 4, which every layer takes.
SHAPES = ("3, 4", "2, 3, 4", "2, 4, 3, 4")
LAYOUTS = (
    "torch.randn({shape})",
    "torch.randn({shape}).transpose(0, -1).contiguous().transpose(0, -1)",
    "torch.randn({shape}).repeat_interleave(2, 0)[::2]",
    "torch.randn({shape}).unsqueeze(0).expand(2, {minus})[1]",
    "torch.randn({shape})[:1]",
    "torch.randn({shape})[..., :1]",
    "torch.randn(())",
    "torch.randint(-3, 4, ({shape},)).float()",
)
IMAGE_LAYOUTS = (*LAYOUTS, "torch.randn({shape}).to(memory_format=torch.channels_last)")
# Makes some elements NaN, infinite, too large for float16, or -0. Those of a surrogate do not reach a cancelled site's value.
HARD = ".where(torch.rand({shape}) < 0.8, torch.tensor([float('nan'), float('inf'), 1e30, -0.0])[torch.randint(4, ({shape},))])"

UNARY = (
    "{a}.relu()", "{a}.tanh()", "{a}.sin()", "F.gelu({a})", "{a}.sigmoid()", "torch.round({a} * 4) / 4", "{a}.softmax(-1)",
    "{a}.clamp(-1, 1)", "{a}.abs()", "{a}.detach().cos()", "({a} > 0).to({a}.dtype)", "{a}.pow(2).mean(-1, keepdim=True)",
    "{a}.logsumexp(0)",
)  # fmt: skip
SCALED = ("{a} * 0.5", "2 * {a}", "-{a}", "{a} + 1", "1 - {a}", "{a} / 3")
# No GroupNorm: its backward crashes eager itself on channels_last arguments that need no gradient (2.13, CPU).
LAYERS = (
    ("linear", "nn.Linear(4, 4)", 1), ("norm", "nn.LayerNorm(4)", 1), ("dropout", "nn.Dropout(0.5)", 1),
    ("batch", "nn.BatchNorm2d(4)", 4), ("conv", "nn.Conv2d(4, 4, 3, padding=1)", 4),
)  # fmt: skip
FUNCTIONS = ("F.dropout({a}, 0.3, self.training)", "F.scaled_dot_product_attention({a}, {a}, {a}.tanh())",
             "F.layer_norm({a}, (4,))", "torch.utils.checkpoint.checkpoint(torch.tanh, {a}, use_reentrant=False)")  # fmt: skip
VIEWS = (
    "{a}.transpose(0, -1)", "{a}.flatten()", "{a}[..., :1]", "{a}[:1]", "{a}.mean(-1, keepdim=True)", "{a}.sum()",
    "{a}.unsqueeze(0)", "{a}.expand_as({a})", "{a}.clone()", "{a}.contiguous()", "{a}.chunk(2, -1)[0]", "{a}.t()",
    "{a}.to(memory_format=torch.channels_last)", "torch.cat([{a}, {a}])[:{a}.shape[0]]",
)  # fmt: skip
IN_PLACE = ("{b}.mul_(2)", "{b}.add_({a}.sin())", "{b}[..., 0] = 0.5", "{b}[:1].mul_(3)", "{b}.relu_()", "{b}.copy_({a}.cos())")
