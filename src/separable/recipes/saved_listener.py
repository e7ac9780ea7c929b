"""A trained network that hears, with everything it needs for that: saved as a folder, loaded, asked about sounds.

The folder is `store`'s: weights, graph, and in `about` the features, the classes, the length of a window and how the
network is built, by which a causal network also comes back as one that streams. Nothing in it is pickled.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from separable import store
from separable.data.features import Features
from separable.data.sound_variation import Clipped
from separable.data.wav import Clip, Clips
from separable.errors import InputError
from separable.models.audio_stream import AudioStream
from separable.models.ds_cnn import DSCNN
from separable.models.time_channel import TimeChannelNet
from separable.progress import track

NETWORKS = ("small", "medium", "large", "causal")
_AT_ONCE = 256  # clips


def build(shape: dict[str, Any]) -> DSCNN | TimeChannelNet:
    """The network that `shape` describes: `kind`, one of NETWORKS, and the arguments of its class.

    Raises:
        InputError: there is no such kind.
    """
    kind, options = shape["kind"], {key: value for key, value in shape.items() if key != "kind"}
    if kind not in NETWORKS:
        raise InputError("network", kind, f"must be one of {', '.join(NETWORKS)}")
    return TimeChannelNet(**options) if kind == "causal" else DSCNN(kind, **options)


@dataclass
class Listener:
    """Samples to scores. network: takes [N, frames, size]. seconds: of the window in whose middle a clip is put."""

    network: DSCNN | TimeChannelNet
    shape: dict[str, Any]
    features: Features
    classes: list[str]
    seconds: float

    @property
    def window(self) -> int:
        return round(self.seconds * self.features.rate)

    def save(self, folder: Path, overwrite: bool = False) -> None:
        """Write the folder, whole or not at all."""
        about = {
            "task": "audio",
            "preparation": self.features.to_json(),
            "classes": self.classes,
            "seconds": self.seconds,
            "network": self.shape,
        }
        example = self.features(torch.zeros(1, self.window))
        store.save(self.network.eval(), folder, example=example, about=about, overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path) -> "Listener":
        """What `save` wrote, in evaluation mode.

        Raises:
            InputError: there is no saved network, or it was not trained on sound.
        """
        about = store.read_about(folder)
        if about.get("task") != "audio":
            raise InputError("folder", str(folder), "holds a network that was not trained on sound")
        network = build(about["network"])
        network.load_state_dict(store.load(folder).state_dict())
        features = Features.from_settings(about["preparation"])
        return cls(network.eval(), about["network"], features, list(about["classes"]), float(about["seconds"]))

    @torch.inference_mode()
    def scores(self, sounds: Sequence[Tensor]) -> Tensor:
        """Class scores [N, classes] of sounds [n] at `features.rate`, each in the middle of its window."""
        clipped = Clipped(sounds, self.window)
        parts = torch.arange(clipped.count).split(_AT_ONCE)
        found = [self.network(self.features(clipped.whole(part))) for part in track(parts, "listening")]
        return torch.cat(found)

    def stream(self) -> AudioStream:
        """A stream that scores sound as it comes.

        Raises:
            InputError: the network is not causal.
        """
        if not isinstance(self.network, TimeChannelNet):
            raise InputError("network", self.shape["kind"], 'sees the whole window; only "causal" streams')
        return AudioStream(self.features, self.network)


def evaluate(listener: Listener, clips: Sequence[Clip]) -> dict[str, Any]:
    """Accuracy, a row a class, confusion, mistakes, the surest first, unseen labels (counted wrong), clips a second."""
    from sklearn.metrics import classification_report, confusion_matrix

    began = time.perf_counter()
    chances = listener.scores([clip.samples for clip in clips]).softmax(1)
    seconds = time.perf_counter() - began
    truth = [clip.parts["label"] for clip in clips]
    guess = [listener.classes[i] for i in chances.argmax(1).tolist()]
    unseen = sorted(set(truth) - set(listener.classes))
    rows = [*listener.classes, *unseen]
    report = classification_report(truth, guess, labels=rows, output_dict=True, zero_division=0)
    mistakes = [
        {"file": clip.name, "label": label, "heard": said, "probability": float(chance)}
        for clip, label, said, chance in zip(clips, truth, guess, chances.amax(1), strict=True)
        if label != said
    ]
    mistakes.sort(key=lambda mistake: -mistake["probability"])
    return {
        "clips": len(clips),
        "accuracy": 1 - len(mistakes) / len(clips),
        "classes": {name: {key: float(v) for key, v in report[name].items()} for name in rows},
        "confusion": {"classes": rows, "counts": confusion_matrix(truth, guess, labels=rows).tolist()},
        "mistakes": mistakes,
        "unseen_labels": unseen,
        "clips_per_s": len(clips) / seconds,
    }


def predict(listener: Listener, sounds: Clips) -> list[dict[str, Any]]:
    """What it hears in each sound: file, label and probability."""
    if sounds.rate != listener.features.rate:
        rule = f"the network was trained at {listener.features.rate} Hz; read the sounds at that rate"
        raise InputError("rate", sounds.rate, rule)
    chances, places = listener.scores([clip.samples for clip in sounds.clips]).softmax(1).max(1)
    return [
        {"file": clip.name, "label": listener.classes[place], "probability": chance}
        for clip, place, chance in zip(sounds.clips, places.tolist(), chances.tolist(), strict=True)
    ]
