"""One site's training script: plain transformers, and the three lines that make it a client of a federation.

python examples/trainer/train.py SITE
"""

import sys
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from ffm.data import read_records
from ffm.trainer import SecAggCallback  # line 1


class Texts(torch.utils.data.Dataset):
    """The site's own records, tokenised as the script likes."""

    def __init__(self, path: Path, tokenizer, labels: tuple[str, ...]) -> None:
        self.rows = [
            {**tokenizer(record.text, truncation=True, max_length=32), "labels": labels.index(record.label)}
            for record in read_records(path, labels)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict:
        return self.rows[place]


def main(site: Path) -> None:
    """Train with everybody else, and say how well the common model does on the site's own records."""
    federation = SecAggCallback(site)  # line 2: the site's keys, the signed manifest, base model and adapter
    data = Texts(site / "records.csv", federation.tokenizer, federation.manifest.training.labels)
    arguments = TrainingArguments(
        output_dir=str(site / "trainer"),
        max_steps=1000,  # the federation ends the training sooner
        per_device_train_batch_size=32,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=federation.model,  # line 3: what the federation trains, and who takes part in it
        callbacks=[federation],
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorWithPadding(federation.tokenizer),
    )
    trainer.train()
    found = trainer.predict(data)
    right = float((found.predictions.argmax(axis=1) == found.label_ids).mean())
    print(f"{trainer.state.global_step} steps; accuracy of the common model on the site's own records {right:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
