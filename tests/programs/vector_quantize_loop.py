"""A training loop of vector-quantize-pytorch."""

import torch
from torch import nn
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(8, 16)
        self.quantiser = VectorQuantize(8, codebook_size=16, rotation_trick=False)

    def forward(self, x):
        q, _, commit = self.quantiser(self.encoder(x))
        return nn.functional.mse_loss(self.decoder(q), x) + commit.sum()


model = Model()
compiled = torch.compile(model)
optimiser = torch.optim.Adam(model.parameters(), 1e-3)
for step in range(4):
    loss = compiled(torch.randn(4, 8, 16))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    print(step, loss.item())
