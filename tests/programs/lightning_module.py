"""A compiled Lightning module of bitlinear-pytorch's layers."""

import lightning
import torch
from bitlinear_pytorch import BitLinear

lightning.seed_everything(0, verbose=False)


class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(BitLinear(16, 32), torch.nn.ReLU(), BitLinear(32, 1))

    def training_step(self, batch, index):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        print(index, loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


x = torch.randn(32, 16)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
trainer = lightning.Trainer(
    max_epochs=1,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(torch.compile(Lit()), data)
