"""The networks that `benchmarks/unseen.py` exports: what builds each, its input and its exporter. Tables, no PyTorch.

Each is under its family as the library names it; `ALIKE` says which of those are built alike and count as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TIMM = """
beit beit_base_patch16_224 1 224 script
byobnet mobileone_s1 1 224 dynamo
byobnet repvgg_a1 1 192 script
byobnet gernet_s 1 224 script
byobnet seresnext26ts 1 256 script
cait cait_xxs24_224 1 224 script
coat coat_lite_mini 1 224 script
coat coat_tiny 1 224 script
convit convit_tiny 1 224 script
convmixer convmixer_1024_20_ks9_p14 1 224 script
convnext convnext_tiny 1 224 script
convnext convnextv2_nano 1 192 script
convnext convnext_zepto_rms 2 224 dynamo
cpubone cpubone_b1_dwnorm 1 224 script
cpubone cpubone_nano 2 192 dynamo
crossvit crossvit_9_240 1 240 script
crossvit crossvit_15_dagger_240 1 240 script
csatv2 csatv2 1 256 dynamo
davit davit_tiny 1 224 dynamo
dla dla34 1 224 dynamo
dla dla60x_c 2 192 script
dla dla60_res2net 1 224 script
dpn dpn68b 1 224 dynamo
dpn dpn48b 1 160 script
edgenext edgenext_small 1 256 dynamo
edgenext edgenext_xx_small 4 192 script
efficientformer efficientformer_l1 1 224 script
efficientformer_v2 efficientformerv2_s0 1 224 dynamo
efficientformer_v2 efficientformerv2_s2 1 224 dynamo
efficientvit_mit efficientvit_b1 1 224 dynamo
efficientvit_mit efficientvit_l1 1 160 script
efficientvit_msra efficientvit_m2 1 224 dynamo
efficientvit_msra efficientvit_m5 2 224 dynamo
fasternet fasternet_t1 1 224 dynamo
fasternet fasternet_s 1 192 script
focalnet focalnet_tiny_srf 1 224 script
ghostnet ghostnet_100 1 224 dynamo
ghostnet ghostnetv2_130 1 224 script
ghostnet ghostnetv3_100 2 192 dynamo
hgnet hgnet_tiny 1 224 dynamo
hgnet hgnetv2_b1 1 256 dynamo
hiera hiera_tiny_224 1 224 script
hieradet_sam2 hieradet_small 1 256 script
hrnet hrnet_w18_small 1 224 dynamo
hrnet hrnet_w18_small_v2 1 192 script
iformer iformer_s 1 224 script
iformer iformer_m 1 192 script
inception_next inception_next_tiny 1 224 script
inception_next inception_next_atto 2 160 dynamo
inception_resnet_v2 inception_resnet_v2 1 192 script
inception_v3 inception_v3 1 256 script
inception_v4 inception_v4 1 192 dynamo
maxxvit coatnet_nano_rw_224 1 224 script
maxxvit maxvit_pico_rw_256 1 256 script
metaformer poolformer_s12 1 224 dynamo
metaformer caformer_s18 1 224 script
metaformer poolformerv2_s12 1 160 script
mlp_mixer mixer_s16_224 1 224 script
mlp_mixer gmlp_s16_224 1 224 dynamo
mlp_mixer resmlp_12_224 1 224 dynamo
mobilenetv5 mobilenetv5_base 1 256 dynamo
mobilevit mobilevit_s 1 256 dynamo
mobilevit mobilevitv2_075 1 192 script
naflexvit naflexvit_base_patch16_gap 1 160 dynamo
nasnet nasnetalarge 1 128 dynamo
nest nest_tiny 1 224 script
pit pit_s_224 1 224 dynamo
pit pit_ti_224 2 224 dynamo
pnasnet pnasnet5large 1 128 dynamo
pvt_v2 pvt_v2_b1 1 224 dynamo
pvt_v2 pvt_v2_b2_li 1 192 dynamo
qwen3_vit qwen3_vit_88m 1 224 script
regnet regnety_008 1 224 script
regnet regnetx_016 1 192 dynamo
regnet regnetz_005 2 224 dynamo
repvit repvit_m0_9 1 224 script
repvit repvit_m1_5 1 192 script
res2net res2net50_26w_4s 1 160 dynamo
res2net res2next50 1 192 dynamo
rexnet rexnet_100 1 224 dynamo
rexnet rexnetr_150 1 192 script
sequencer sequencer2d_s 1 224 script
shvit shvit_s2 1 224 dynamo
shvit shvit_s4 1 256 script
sknet skresnet34 1 224 dynamo
sknet skresnext50_32x4d 1 160 script
starnet starnet_s2 1 224 script
starnet starnet_s4 1 192 script
swiftformer swiftformer_s 1 224 script
tresnet tresnet_m 1 192 script
visformer visformer_small 1 224 script
visformer visformer_tiny 4 192 dynamo
vision_transformer_sam samvit_base_patch16_224 1 160 script
vitamin vitamin_small_224 1 224 script
vovnet ese_vovnet19b_dw 1 224 script
vovnet ese_vovnet39b 1 192 script
"""
"""Family, model, batch, side in pixels, exporter."""

ALIKE = {
    "bart": "marian",
    "beit": "data2vec-vision",
    "bert-like": "layoutlm lilt",
    "bert-like-rope": "esm modernbert roformer",
    "convnext": "convnextv2",
    "detr": "conditional_detr",
    "gptj-like": "gptj phi",
    "hgnet": "hgnet_v2",
    "hiera": "hieradet_sam2",
    "hifigan": "speecht5_hifigan",
    "inception": "inception_resnet_v2 inception_v3 inception_v4",
    "llama-like": "gemma2 llama mistral qwen2",
    "metaformer": "poolformer",
    "mobilevit": "mobilevitv2",
    "nasnet": "pnasnet",
    "pvt_v2": "pvt",
    "sam": "vision_transformer_sam",
    "segformer": "glpn",
    "t5": "longt5",
    "vit-like": "audio-spectrogram-transformer naflexvit timesformer videomae vit_mae vitpose_backbone vivit",
    "vit-like-rope": "qwen3_vit",
    "wav2vec2": "hubert sew wavlm",
}
FAMILIES = {member: family for family, members in ALIKE.items() for member in members.split()}


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor to make: its shape, and what of (`tokens`, `normal`, `uniform` or `ones`)."""

    shape: tuple[int, ...]
    of: str = "normal"


@dataclass(frozen=True, slots=True)
class SubConfig:
    """A configuration inside a configuration: the class of transformers, its values."""

    cls: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A network of transformers: its class, what is set in its configuration, and which part of it is exported."""

    cls: str
    config: Mapping[str, object]
    part: str = ""
    keywords: Mapping[str, Input | bool] = field(default_factory=dict)  # beside the input; constants of the graph


@dataclass(frozen=True, slots=True)
class Network:
    """One network to export.

    `source` is what builds it: ``timm``, ``hf`` (transformers) or ``plain`` (`unseen_plain.py`). `variant` tells the
    size of the input. `dynamo` says which of PyTorch's two exporters writes it.
    """

    source: str
    library_family: str
    model: str
    variant: str
    dynamo: bool
    input: Input
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        """Of the file; a trailing ``d`` marks the dynamo exporter.

        >>> Network("timm", "regnet", "regnety_008", "b1r224", True, images(224)).name
        'timm-regnet__regnety_008__b1r224d'
        """
        exporter = "d" if self.dynamo else ""
        return f"{self.source}-{self.library_family}__{self.model}__{self.variant}{exporter}"

    @property
    def family(self) -> str:
        """Networks of one family are built alike, whichever library they are from."""
        if self.source == "plain":
            return f"plain-{self.library_family}"
        return FAMILIES.get(self.library_family, self.library_family)


EXPORTERS = {"script": False, "dynamo": True}


def values(*shape: int) -> Input:
    return Input(shape)


def tokens(length: int, batch: int = 1) -> Input:
    return Input((batch, length), "tokens")


def images(side: int, batch: int = 1) -> Input:
    return Input((batch, 3, side, side))


def timm(line: str) -> Network:
    """The network of one line of `TIMM`."""
    family, model, batch, side, exporter = line.split()
    example = images(int(side), int(batch))
    return Network("timm", family, model, f"b{batch}r{side}", EXPORTERS[exporter], example)


def plain(family: str, model: str, variant: str, exporter: str, example: Input) -> Network:
    return Network("plain", family, model, variant, EXPORTERS[exporter], example)


def hf(
    family: str, model: str, variant: str, exporter: str, example: Input, /,
    cls: str = "AutoModel", part: str = "", keywords: Mapping[str, Input | bool] | None = None, **config: object,
) -> Network:  # fmt: skip
    """A network of transformers; what is left over is its configuration."""
    recipe = Recipe(cls, config, part, keywords or {})
    return Network("hf", family, model, variant, EXPORTERS[exporter], example, recipe)


NO_CACHE = {"use_cache": False}
WIDTH = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
TEXT = {**WIDTH, "num_hidden_layers": 6, "vocab_size": 8000}
SPEECH = {**WIDTH, "num_hidden_layers": 4, "conv_dim": (256,) * 7}
DECODER = {
    "vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4,
}  # fmt: skip
TRANSLATION = {"vocab_size": 8000, "d_model": 512, "encoder_layers": 6, "decoder_layers": 1,
               "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}  # fmt: skip
VIDEO = {**WIDTH, "image_size": 112, "num_hidden_layers": 6}
RESNET18 = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
    "backbone_config": SubConfig("ResNetConfig", {**RESNET18, "out_features": ["stage4"]}),
    "encoder_layers": 4, "decoder_layers": 4, "d_model": 256, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024,
}  # fmt: skip

# fmt: off
TRANSFORMERS = (
    # Text
    hf("convbert", "small", "s128", "dynamo", tokens(128), hidden_size=256, embedding_size=128, num_attention_heads=4,
       intermediate_size=1024, num_hidden_layers=8),
    hf("fnet", "base6", "s128", "dynamo", tokens(128), num_hidden_layers=6, use_tpu_fourier_optimizations=True,
       tpu_short_seq_length=128),
    hf("funnel", "small", "s128", "dynamo", tokens(128), cls="FunnelModel", block_sizes=[2, 2, 2],
       block_repeats=[1, 1, 1], num_decoder_layers=2, pad_token_id=0, eos_token_id=1, num_labels=2, d_model=384,
       n_head=6, d_inner=1536),
    hf("t5", "smallenc", "s128", "script", tokens(128), cls="T5EncoderModel", vocab_size=8000, num_layers=6,
       d_model=512),
    hf("t5", "v11enc", "s64", "script", tokens(64), cls="T5EncoderModel", vocab_size=8000, num_layers=8, d_model=512,
       d_ff=1024, num_heads=6, feed_forward_proj="gated-gelu"),
    hf("longt5", "enc", "s256", "script", tokens(256), cls="LongT5EncoderModel", vocab_size=8000, num_layers=4,
       d_model=384, num_heads=6, d_ff=1024, local_radius=31),
    hf("layoutlm", "small", "s128", "script", tokens(128), **TEXT),
    hf("lilt", "small", "s96", "script", tokens(96), **TEXT),
    hf("nystromformer", "small", "s256", "script", tokens(256), segment_means_seq_len=256, num_landmarks=32, **TEXT),
    hf("xlnet", "small", "s128", "dynamo", tokens(128), vocab_size=8000, d_model=384, n_layer=6, n_head=6,
       d_inner=1536),
    hf("ibert", "small", "s96", "script", tokens(96), quant_mode=False, **TEXT),
    hf("modernbert", "small", "s128", "script", tokens(128), vocab_size=8000, pad_token_id=0, bos_token_id=1,
       eos_token_id=2, cls_token_id=1, sep_token_id=2, hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
       intermediate_size=576),
    hf("esm", "t6", "s128", "dynamo", tokens(128), vocab_size=120, pad_token_id=1, mask_token_id=32, hidden_size=320,
       num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280, position_embedding_type="rotary",
       token_dropout=False),
    hf("roformer", "small", "s128", "script", tokens(128), embedding_size=384, **TEXT),
    hf("deberta", "small", "s64", "script", tokens(64), relative_attention=True, pos_att_type=["c2p", "p2c"], **TEXT),
    hf("canine", "small", "s256", "dynamo", tokens(256), num_hidden_layers=6, **WIDTH),
    hf("rembert", "small", "s64", "script", tokens(64), input_embedding_size=128, **TEXT),
    hf("big_bird", "small", "s128", "dynamo", tokens(128), attention_type="original_full", **TEXT),
    hf("perceiver", "text", "s256", "script", values(1, 256, 384), d_model=384, num_latents=64, d_latents=256,
       num_self_attends_per_block=6, num_cross_attention_heads=4),
    hf("bart", "enc", "s128", "script", tokens(128), cls="BartModel", part="encoder", **TRANSLATION),
    hf("bart", "full", "s32", "dynamo", tokens(32), cls="BartModel",
       keywords={"use_cache": False, "decoder_input_ids": tokens(32)}, vocab_size=8000, d_model=384, encoder_layers=3,
       decoder_layers=3, encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536,
       decoder_ffn_dim=1536),
    hf("marian", "enc", "s64", "dynamo", tokens(64), cls="MarianModel", part="encoder", pad_token_id=7999,
       **TRANSLATION),
    hf("llama", "tiny", "s64", "dynamo", tokens(64), keywords=NO_CACHE, **DECODER),
    hf("mistral", "tiny", "s128", "dynamo", tokens(128), keywords=NO_CACHE, **DECODER),
    hf("qwen2", "tiny", "s64b2", "dynamo", tokens(64, 2), keywords=NO_CACHE, **DECODER),
    hf("gemma2", "tiny", "s64", "dynamo", tokens(64), keywords=NO_CACHE, head_dim=64, **DECODER),
    hf("phi", "tiny", "s64", "dynamo", tokens(64), keywords=NO_CACHE, **{**DECODER, "num_key_value_heads": 8}),
    hf("gptj", "tiny", "s64", "dynamo", tokens(64), keywords=NO_CACHE, vocab_size=8000, n_embd=512, n_layer=6,
       n_head=8, rotary_dim=32),
    hf("falcon", "tiny", "s96", "dynamo", tokens(96), keywords=NO_CACHE, vocab_size=8000, hidden_size=512,
       num_hidden_layers=6, num_attention_heads=8, alibi=False),
    hf("bloom", "tiny", "s64", "script", tokens(64), keywords=NO_CACHE, vocab_size=8000, hidden_size=512, n_layer=6,
       n_head=8),
    hf("gpt_neo", "tiny", "s64", "dynamo", tokens(64), keywords=NO_CACHE, vocab_size=8000, hidden_size=512,
       num_layers=6, num_heads=8, attention_types=[[["global", "local"], 3]]),
    hf("mamba", "tiny", "s32", "script", tokens(32), keywords=NO_CACHE, vocab_size=8000, hidden_size=384,
       num_hidden_layers=3),
    # Images and video
    hf("segformer", "b0", "b1r256", "script", images(256), cls="SegformerForSemanticSegmentation"),
    hf("segformer", "b1cls", "b1r224", "dynamo", images(224), cls="SegformerForImageClassification",
       hidden_sizes=[64, 128, 320, 512]),
    hf("glpn", "small", "b1r192", "script", images(192), cls="GLPNForDepthEstimation",
       hidden_sizes=[32, 64, 160, 256]),
    hf("mobilevit", "xs", "b1r256", "script", images(256), cls="MobileViTForImageClassification",
       hidden_sizes=[96, 120, 144], neck_hidden_sizes=[16, 32, 48, 64, 80, 96, 384]),
    hf("mobilevitv2", "seg", "b1r192", "dynamo", images(192), cls="MobileViTV2ForSemanticSegmentation",
       width_multiplier=0.75),
    hf("cvt", "13", "b1r224", "dynamo", images(224), cls="CvtForImageClassification"),
    hf("poolformer", "s12", "b2r160", "script", images(160, 2), cls="PoolFormerForImageClassification"),
    hf("regnet", "y400", "b1r224", "script", images(224), cls="RegNetForImageClassification", embedding_size=32,
       hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8),
    hf("convnextv2", "pico", "b1r224", "dynamo", images(224), hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 6, 2]),
    hf("beit", "small", "b1r224", "dynamo", images(224), use_relative_position_bias=True, num_hidden_layers=8,
       **WIDTH),
    hf("data2vec-vision", "small", "b1r192", "dynamo", images(192), image_size=192,
       use_shared_relative_position_bias=True, **WIDTH),
    hf("pvt", "tiny", "b1r224", "script", images(224)),
    hf("swiftformer", "xs", "b1r224", "script", images(224)),
    hf("mobilenet_v2", "1.0", "b1r224", "script", images(224)),
    hf("vit_mae", "enc", "b1r224", "script", images(224), cls="ViTMAEModel",
       keywords={"noise": Input((1, 196), "uniform")}, mask_ratio=0.75, **WIDTH),
    hf("videomae", "small", "b1r112", "dynamo", values(1, 8, 3, 112, 112), num_frames=8, **VIDEO),
    hf("vivit", "small", "b1r112", "script", values(1, 8, 3, 112, 112), num_frames=8, **VIDEO),
    hf("timesformer", "small", "b1r112", "script", values(1, 4, 3, 112, 112), num_frames=4, **VIDEO),
    hf("detr", "r18", "b1r256", "dynamo", images(256), cls="DetrForObjectDetection", **DETR),
    hf("conditional_detr", "r18", "b1r224", "script", images(224), cls="ConditionalDetrForObjectDetection", **DETR),
    hf("rt_detr", "r18", "b1r256", "dynamo", images(256), cls="RTDetrForObjectDetection",
       backbone_config=SubConfig("RTDetrResNetConfig", {**RESNET18, "out_features": ["stage2", "stage3", "stage4"]}),
       encoder_in_channels=[128, 256, 512], decoder_layers=3, hidden_expansion=0.5, num_queries=100),
    hf("superpoint", "base", "b1r192", "dynamo", images(192), cls="SuperPointForKeypointDetection"),
    hf("vitpose_backbone", "small", "b1r192", "script", images(192), cls="VitPoseBackbone", image_size=[192, 192],
       hidden_size=384, num_attention_heads=6),
    hf("textnet", "tiny", "b1r224", "script", images(224)),
    hf("hgnet_v2", "b0", "b1r224", "dynamo", images(224), cls="HGNetV2Backbone"),
    hf("groupvit_vision_model", "small", "b1r224", "dynamo", images(224), cls="GroupViTVisionModel"),
    hf("mgp-str", "small", "b1r128", "script", values(1, 3, 32, 128), cls="MgpstrForSceneTextRecognition",
       num_hidden_layers=8, hidden_size=384, num_attention_heads=6),
    # Sound and series
    hf("whisper", "tinyenc", "s500", "script", values(1, 80, 1000), cls="WhisperModel", part="encoder",
       max_source_positions=500),
    hf("whisper", "baseenc", "s250", "dynamo", values(1, 80, 500), cls="WhisperModel", part="encoder",
       max_source_positions=250, d_model=512, encoder_layers=6, encoder_attention_heads=8, decoder_layers=1,
       decoder_attention_heads=8, encoder_ffn_dim=2048),
    hf("wav2vec2", "small", "s16000", "dynamo", values(1, 16000), **SPEECH),
    hf("hubert", "small", "s8000", "dynamo", values(1, 8000), **SPEECH),
    hf("wavlm", "small", "s8000", "script", values(1, 8000), **SPEECH),
    hf("sew", "small", "s16000", "script", values(1, 16000), num_hidden_layers=4, **WIDTH),
    hf("audio-spectrogram-transformer", "small", "s256", "script", values(1, 256, 128), max_length=256,
       num_hidden_layers=6, **WIDTH),
    hf("encodec", "enc", "s8000", "script", values(1, 1, 8000), cls="EncodecModel", part="encoder", num_filters=16),
    hf("dac", "enc", "s8192", "script", values(1, 1, 8192), cls="DacModel", part="encoder", encoder_hidden_size=32),
    hf("speecht5_hifigan", "small", "s32", "dynamo", values(1, 32, 80), cls="SpeechT5HifiGan",
       upsample_initial_channel=256),
    hf("speech_to_text", "enc", "s256", "script", values(1, 256, 80), cls="Speech2TextModel", part="encoder",
       encoder_layers=6, decoder_layers=1, d_model=256, encoder_ffn_dim=1024),
    hf("informer", "small", "s48", "dynamo", values(1, 55), cls="InformerModel",
       keywords={"past_time_features": values(1, 55, 2), "past_observed_mask": Input((1, 55), "ones"),
                 "future_values": values(1, 48), "future_time_features": values(1, 48, 2), "use_cache": False},
       distil=False, prediction_length=48, context_length=48, num_time_features=2, d_model=128, encoder_layers=4,
       decoder_layers=4, encoder_ffn_dim=512, decoder_ffn_dim=512, encoder_attention_heads=4,
       decoder_attention_heads=4),
    hf("patchtsmixer", "base", "s512b4", "dynamo", values(4, 512, 7), context_length=512, patch_length=16,
       patch_stride=8, num_input_channels=7, d_model=128, num_layers=8),
)

PLAIN = (
    plain("lstm", "bitagger", "s64", "script", tokens(64)),
    plain("lstm", "lm", "s32b4", "script", tokens(32, 4)),
    plain("gru", "frames", "s100", "script", values(1, 100, 80)),
    plain("gru", "bitext", "s64b2", "script", tokens(64, 2)),
    plain("crnn", "ocr", "b1r160", "dynamo", values(1, 1, 32, 160)),
    plain("unet", "seg24", "b1r192", "script", images(192)),
    plain("unet", "seg16", "b2r160", "dynamo", images(160, 2)),
    plain("diffusion", "unet64", "b1r32", "script", values(1, 4, 32, 32)),
    plain("diffusion", "unet32", "b2r48", "script", images(48, 2)),
    plain("hourglass", "kp64", "b1r256", "script", images(256)),
    plain("hourglass", "kp96", "b1r192", "dynamo", images(192)),
    plain("edsr", "x3", "b1r64", "dynamo", images(64)),
    plain("style", "fast24", "b1r160", "script", images(160)),
    plain("convtasnet", "c128", "s8000", "script", values(1, 1, 8000)),
    plain("pointnet", "seg", "s1024", "script", values(1, 3, 1024)),
    plain("conv3d", "r2plus1", "b1r112", "dynamo", values(1, 3, 8, 112, 112)),
    plain("dlrm", "small", "s26b64", "script", tokens(26, 64)),
    plain("conformer", "small", "s400", "script", values(1, 80, 400)),
)
# fmt: on

NETWORKS = (*map(timm, TIMM.strip().splitlines()), *TRANSFORMERS, *PLAIN)
