"""An Accelerate loop, `dynamo_backend="inductor"`, of torch's own hard Gumbel sample."""

import torch
from accelerate import Accelerator
from torch import nn

torch.manual_seed(0)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 4), nn.Linear(8, 8 * 4)

    def forward(self, x):
        g = nn.functional.gumbel_softmax(self.gate(x), hard=True)
        return torch.einsum("be,bed->bd", g, self.experts(x).view(-1, 4, 8))


accelerator = Accelerator(cpu=True, dynamo_backend="inductor")
model = Router()
optimiser = torch.optim.SGD(model.parameters(), 0.1)
model, optimiser = accelerator.prepare(model, optimiser)
for step in range(3):
    x = torch.randn(16, 8)
    loss = (model(x) - x).pow(2).mean()
    accelerator.backward(loss)
    optimiser.step()
    optimiser.zero_grad()
    print(step, loss.item())
