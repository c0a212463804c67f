"""Rows of unequal length → padded arrays, as a model reads them."""

import numpy as np

Batch = dict[str, np.ndarray]


def padded(rows: list[np.ndarray], length: int, padding: int = 0) -> np.ndarray:
    """Returns int32 [number of rows, length]."""
    filled = np.full((len(rows), length), padding, np.int32)
    for row, values in zip(filled, rows, strict=True):
        row[: len(values)] = values
    return filled


def is_token(rows: list[np.ndarray], length: int) -> np.ndarray:
    """Returns bool [number of rows, length], False for padding."""
    return np.arange(length) < np.array([len(row) for row in rows])[:, None]


def positions(segment_ids: np.ndarray) -> np.ndarray:
    """Returns 0, 1, … from the start of each segment and 0 for padding: int32, of the same shape."""
    places = np.arange(segment_ids.shape[1], dtype=np.int32)
    is_start = np.diff(segment_ids, axis=1, prepend=0) != 0
    starts = np.maximum.accumulate(np.where(is_start, places, 0), axis=1)
    return np.where(segment_ids > 0, places - starts, 0).astype(np.int32)


def sequence_to_sequence(
    pairs: list[tuple[np.ndarray, np.ndarray]], length: int, target_length: int, *, start_id: int, pad_id: int
) -> Batch:
    """Returns encoder and decoder rows of (inputs, targets); the decoder reads `start_id` and then the targets."""
    inputs, targets = [inputs for inputs, _ in pairs], [targets for _, targets in pairs]
    encoder, decoder = is_token(inputs, length), is_token(targets, target_length)
    return {
        "encoder_inputs": padded(inputs, length, pad_id),
        "encoder_segment_ids": encoder.astype(np.int32),
        "encoder_positions": positions(encoder),
        "decoder_inputs": padded([shifted(row, start_id) for row in targets], target_length, pad_id),
        "decoder_targets": padded(targets, target_length, pad_id),
        "decoder_weights": decoder.astype(np.float32),
        "decoder_segment_ids": decoder.astype(np.int32),
        "decoder_positions": positions(decoder),
    }


def one_row(pairs: list[tuple[np.ndarray, np.ndarray]], length: int, *, start_id: int, pad_id: int) -> Batch:
    """Returns rows of the input, then what the decoder reads of the target; the input is a prefix, not predicted."""
    rows = [np.concatenate([inputs, shifted(targets, start_id)]) for inputs, targets in pairs]
    used = is_token(rows, length)
    prefix = is_token([inputs for inputs, _ in pairs], length)
    weights = used & ~prefix
    targets = np.full(weights.shape, pad_id, np.int32)
    targets[weights] = np.concatenate([targets for _, targets in pairs])
    return {
        "inputs": padded(rows, length, pad_id),
        "targets": targets,
        "weights": weights.astype(np.float32),
        "segment_ids": used.astype(np.int32),
        "positions": positions(used),
        "prefix": prefix,
    }


def shifted(targets: np.ndarray, start_id: int) -> np.ndarray:
    """Returns what the decoder reads to predict `targets`: `start_id`, then all of them but the last."""
    return np.concatenate([np.array([start_id], np.int32), targets])[: len(targets)]
