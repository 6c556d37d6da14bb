"""transformers' `Trainer` with `torch_compile=True`: a tiny random Wav2Vec2, whose quantiser is Gumbel's."""

import numpy
import torch
from transformers import Trainer, TrainingArguments, Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

torch.manual_seed(0)
config = Wav2Vec2Config(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(16, 16),
    conv_stride=(5, 4),
    conv_kernel=(10, 8),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    num_codevectors_per_group=8,
    num_codevector_groups=2,
    codevector_dim=8,
    proj_codevector_dim=16,
    num_negatives=4,
    layerdrop=0.0,
    do_stable_layer_norm=False,
)
model = Wav2Vec2ForPreTraining(config)
length = int(model._get_feat_extract_output_lengths(2000))


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        numpy.random.seed(i)
        mask = _compute_mask_indices((1, length), 0.2, 2)
        negatives = _sample_negative_indices((1, length), 4, mask_time_indices=mask)
        return {
            "input_values": torch.sin(torch.arange(2000) * (i + 1) / 50),
            "mask_time_indices": torch.tensor(mask[0]),
            "sampled_negative_indices": torch.tensor(negatives[0]),
        }


arguments = TrainingArguments(
    "out",
    per_device_train_batch_size=4,
    max_steps=3,
    torch_compile=True,
    report_to=[],
    logging_steps=1,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
    logging_nan_inf_filter=False,
)
trainer = Trainer(model, arguments, train_dataset=Data())
trainer.train()
print([(each["loss"], each["grad_norm"]) for each in trainer.state.log_history if "loss" in each])
