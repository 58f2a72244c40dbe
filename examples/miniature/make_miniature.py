"""Makes the miniature: a small LLaMA in Meta's original layout and two LoRA adapters in the form of 2023.

    python examples/miniature/make_miniature.py --out DIR

Everything is trained from the sentences in `corpus/` on one CPU thread with fixed seeds. The three steps are
those of Chinese-LLaMA-Alpaca (https://arxiv.org/abs/2304.08177): an English base; an extended vocabulary and
an adapter trained on Chinese text; one more token and an adapter trained on instructions in both languages.
"""

import argparse
import hashlib
import io
import json
import logging
import math
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import sentencepiece as spm
import torch
from check_miniature import (
    ADAPTERS,
    BOS_ID,
    EOS_ID,
    HF_NAMES,
    TEMPLATE,
    State,
    check,
    hf_config,
    load_model,
    merge_adapter,
    meta_to_hf,
    read_adapter,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from sentencepiece import sentencepiece_model_pb2
from transformers import LlamaForCausalLM, set_seed

log = logging.getLogger("miniature")

CORPUS = Path(__file__).parent / "corpus"
SEED = 20230328
# No two sizes coincide: head_dim 14, KV width 56, feed-forward 320; 8 heads are not the square of 4 KV heads.
PARAMS = {
    "dim": 112,
    "multiple_of": 20,
    "ffn_dim_multiplier": 1.05,
    "n_heads": 8,
    "n_kv_heads": 4,
    "n_layers": 3,
    "norm_eps": 1e-06,
    "vocab_size": -1,
}
BASE_PIECES = 608
CHINESE_PIECES = 500
PROJECTIONS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
IGNORED = -100  # the label that transformers' loss leaves out


class Sample(NamedTuple):
    """Token ids of one training text, and how many at its start are given rather than learned."""

    ids: list[int]
    given: int


class Schedule(NamedTuple):
    """One training run."""

    steps: int
    batch: int
    learning_rate: float


class Recipe(NamedTuple):
    """One adapter: its LoRA sizes and its training run."""

    rank: int
    alpha: int
    schedule: Schedule


BASE_SCHEDULE = Schedule(steps=800, batch=32, learning_rate=3e-3)
RECIPES = {
    "chinese-llama-lora": Recipe(10, 40, Schedule(steps=700, batch=32, learning_rate=3e-3)),
    "chinese-alpaca-lora": Recipe(18, 45, Schedule(steps=400, batch=16, learning_rate=2e-3)),
}


def read_lines(name: str) -> list[str]:
    """The lines of one corpus file."""
    return (CORPUS / name).read_text(encoding="utf-8").splitlines()


def train_tokenizer(lines: list[str], pieces: int, *, byte_fallback: bool) -> bytes:
    """A SentencePiece BPE model with LLaMA's options: identity normalizer, split digits, dummy prefix."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def extend_tokenizer(model: bytes, pieces: list[str]) -> bytes:
    """Each piece not yet present appended as NORMAL with score 0; nothing else changes."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    present = {piece.piece for piece in proto.pieces}
    for piece in pieces:
        if piece not in present:
            proto.pieces.add(piece=piece, score=0.0)
    return bytes(proto.SerializeToString(deterministic=True))


def pieces_of(model: bytes) -> list[str]:
    """All pieces of a SentencePiece model in id order."""
    return [piece.piece for piece in sentencepiece_model_pb2.ModelProto.FromString(model).pieces]


def sentence_samples(lines: list[str], tokenizer: bytes) -> list[Sample]:
    """Each line between `<s>` and `</s>`, learned whole."""
    processor = spm.SentencePieceProcessor(model_proto=tokenizer)
    return [Sample([BOS_ID, *processor.encode(line), EOS_ID], 1) for line in lines]


def instruction_samples(pairs: list[dict[str, str]], tokenizer: bytes) -> list[Sample]:
    """Each question in the template with its answer and `</s>`; only the answer is learned.

    The answer is tokenized where it stands: the newline before it is no piece, so no merge crosses it and
    the prompt's ids are a prefix of the whole.
    """
    processor = spm.SentencePieceProcessor(model_proto=tokenizer)
    samples = []
    for pair in pairs:
        prompt = TEMPLATE.format(instruction=pair["question"])
        ids = [BOS_ID, *processor.encode(prompt + pair["answer"]), EOS_ID]
        samples.append(Sample(ids, 1 + len(processor.encode(prompt))))
    return samples


def batches(samples: list[Sample], schedule: Schedule) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids and labels; a new shuffle each time the samples are used up."""
    queue: list[int] = []
    for _ in range(schedule.steps):
        while len(queue) < schedule.batch:
            queue += torch.randperm(len(samples)).tolist()
        chosen = [samples[i] for i in queue[: schedule.batch]]
        del queue[: schedule.batch]
        width = max(len(sample.ids) for sample in chosen)
        ids = torch.full((len(chosen), width), EOS_ID)
        labels = torch.full((len(chosen), width), IGNORED)
        for row, sample in enumerate(chosen):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            labels[row, sample.given : len(sample.ids)] = torch.tensor(sample.ids[sample.given :])
        yield ids, labels


def train(model: torch.nn.Module, samples: list[Sample], schedule: Schedule) -> None:
    """AdamW with a short warm-up and a cosine to zero over whatever parameters of the model learn."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for step, (ids, labels) in enumerate(batches(samples, schedule), start=1):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0:
            log.info("  step %d of %d, loss %.4f", step, schedule.steps, loss.item())


def train_base(lines: list[str], tokenizer: bytes) -> State:
    """The base model trained from nothing on English sentences; float16, Hugging Face's names."""
    model = LlamaForCausalLM(hf_config(PARAMS, len(pieces_of(tokenizer))))
    train(model, sentence_samples(lines, tokenizer), BASE_SCHEDULE)
    return {name: tensor.half() for name, tensor in model.state_dict().items()}


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Half-split rotary rows (Hugging Face) back to interleaved ones (Meta)."""
    rows, cols = weight.shape
    return weight.view(heads, 2, rows // heads // 2, cols).transpose(1, 2).reshape(rows, cols)


def hf_to_meta(state: State) -> State:
    """The state dict of the original: Meta's names and row order, each tensor with a storage of its own."""
    heads = {"wq": int(PARAMS["n_heads"]), "wk": int(PARAMS["n_kv_heads"])}
    tensors = {}
    for meta, hf in HF_NAMES.items():
        per_layer = meta.startswith(("attention", "ffn", "feed_forward"))
        for layer in range(int(PARAMS["n_layers"])) if per_layer else [None]:
            prefix = "" if layer is None else f"layers.{layer}."
            value = state[("model." if prefix else "") + prefix + hf]
            kind = meta.split(".")[1]
            tensors[prefix + meta] = (unpermute(value, heads[kind]) if kind in heads else value).clone()
    head_dim = PARAMS["dim"] // PARAMS["n_heads"]
    tensors["rope.freqs"] = (10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)).half()
    return tensors


def export_original(state: State, tokenizer: bytes, folder: Path) -> None:
    """`7B/` with weights, `params.json` and `checklist.chk`; `tokenizer.model` one level up, as in 2023."""
    rank_folder = folder / "7B"
    rank_folder.mkdir(parents=True, exist_ok=True)
    torch.save(hf_to_meta(state), rank_folder / "consolidated.00.pth")
    (rank_folder / "params.json").write_text(json.dumps(PARAMS) + "\n")
    (folder / "tokenizer.model").write_bytes(tokenizer)
    write_sums(rank_folder, rank_folder / "checklist.chk", algorithm="md5")


def lora_config(recipe: Recipe) -> LoraConfig:
    """LoRA on all seven projections; embeddings and head are trained whole."""
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=PROJECTIONS,
        modules_to_save=["embed_tokens", "lm_head"],
    )


def train_adapter(state: State, samples: list[Sample], recipe: Recipe, *, vocab_size: int) -> State:
    """The adapter's float16 tensors under the keys of 2023, trained with PEFT on top of the given weights."""
    model = load_model(state, PARAMS)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    peft_model = get_peft_model(model, lora_config(recipe))
    train(peft_model, samples, recipe.schedule)
    tensors = get_peft_model_state_dict(peft_model)
    return {name: tensor.detach().half().clone() for name, tensor in tensors.items()}


def adapter_config(recipe: Recipe) -> dict[str, object]:
    """`adapter_config.json` as PEFT 0.3 wrote it, with its null keys."""
    return {
        "base_model_name_or_path": "llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": float(recipe.alpha),
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "peft_type": "LORA",
        "r": recipe.rank,
        "target_modules": PROJECTIONS,
        "task_type": "CAUSAL_LM",
    }


def tokenizer_configs(*, with_pad: bool) -> dict[str, dict[str, object]]:
    """`special_tokens_map.json` and `tokenizer_config.json` of a LlamaTokenizer of 2023."""
    special: dict[str, object] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if with_pad:
        special["pad_token"] = "[PAD]"
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **special,
    }
    return {"special_tokens_map.json": special, "tokenizer_config.json": config}


def write_adapter_zip(path: Path, tensors: State, tokenizer: bytes, recipe: Recipe) -> None:
    """The adapter's five files at the root of a zip, with fixed dates: equal content is an equal file."""
    weights = io.BytesIO()
    torch.save(tensors, weights)
    texts = {"adapter_config.json": adapter_config(recipe)}
    texts |= tokenizer_configs(with_pad="[PAD]" in pieces_of(tokenizer))
    files = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in texts.items()}
    files |= {"adapter_model.bin": weights.getvalue(), "tokenizer.model": tokenizer}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, date_time=(2023, 3, 28, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, compress_type=zipfile.ZIP_DEFLATED)


def write_sums(folder: Path, target: Path, *, algorithm: str) -> None:
    """Digests of the made files under a folder, in the format of `sha256sum` and `md5sum`."""
    made = [p for p in sorted(folder.rglob("*")) if p.suffix in {".pth", ".json", ".model", ".zip", ".chk"}]
    paths = [p for p in made if p != target and "corpus" not in p.parts]
    lines = [
        f"{hashlib.new(algorithm, p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in paths
    ]
    target.write_text("".join(lines))


def write_questions(questions: list[dict[str, str]], path: Path) -> None:
    """The questions that the merged model must answer to the letter."""
    path.write_text(json.dumps(questions, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def make(out: Path) -> None:
    """All files of the miniature, each step working from what the step before has written."""
    english, chinese = read_lines("english.txt"), read_lines("chinese.txt")
    instructions = json.loads((CORPUS / "instructions.json").read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)

    log.info("base: %d sentences", len(english))
    tokenizer = train_tokenizer(english, BASE_PIECES, byte_fallback=True)
    export_original(train_base(english, tokenizer), tokenizer, out / "llama")
    state = meta_to_hf(torch.load(out / "llama/7B/consolidated.00.pth", weights_only=True), PARAMS)

    additions = pieces_of(train_tokenizer(chinese, CHINESE_PIECES, byte_fallback=False))
    llama_tokenizer = extend_tokenizer(tokenizer, additions)
    alpaca_tokenizer = extend_tokenizer(llama_tokenizer, ["[PAD]"])
    pairs = instructions["listed"] + instructions["further"]
    steps = (
        (llama_tokenizer, sentence_samples(chinese, llama_tokenizer)),
        (alpaca_tokenizer, instruction_samples(pairs, alpaca_tokenizer)),
    )
    for name, (extended, samples) in zip(ADAPTERS, steps, strict=True):
        vocab_size = len(pieces_of(extended))
        log.info("%s: %d samples, vocabulary %d", name, len(samples), vocab_size)
        tensors = train_adapter(state, samples, RECIPES[name], vocab_size=vocab_size)
        write_adapter_zip(out / f"{name}.zip", tensors, extended, RECIPES[name])
        state = merge_adapter(state, read_adapter(out / f"{name}.zip"))

    write_questions(instructions["listed"], out / "questions.json")
    write_sums(out, out / "SHA256SUMS", algorithm="sha256")


def main() -> int:
    """Makes the miniature and checks it; exit status 1 when the check fails."""
    parser = argparse.ArgumentParser(description="Make the miniature models.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    set_seed(SEED)
    started = time.monotonic()
    make(out)
    log.info("made in %.0f s", time.monotonic() - started)
    return 0 if check(out) else 1


if __name__ == "__main__":
    sys.exit(main())
