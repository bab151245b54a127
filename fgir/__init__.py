"""Fine-grained image retrieval: find the photographs that show the same species, model or article"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "data.files": "",
    "data.table": "read_cub read_cars read_sop read_inshop read_aircraft read_folder make_table hold_out_classes "
            "check_images drop_bad load_image load_row image_path show_images shared_dir",
    "data.fish": "synth_dataset",
    "papers.formats": "read_table write_table write_crops download prepare READERS",
    "data.batches": "TRANSFORMS get_transforms retrieval_dls table_dl resize_cache",
    "backbones.nets": "create_backbone as_backbone create_pool BACKBONES POOLS RetrievalNet Pooled save_model load_model "
                 "count_parameters count_operations",
    "losses.pairs": "BatchHardTripletLoss MultiSimilarityLoss NormSoftmaxLoss ProxyNCALoss ProxyAnchorLoss PositiveProxyLoss "
              "MovingProxyLoss CosFaceLoss ArcFaceLoss DGPCRLoss LabelSmoothingCE",
    "features.exact": "neighbours",
    "features.metrics": "recall_at_k score_queries score_lists confidence cluster_agreement",
    "features.store": "Features ColorHistogram CropWarning extract evaluate_recall show_neighbours save_retrieval_pictures",
    "training.learner": "retrieval_learner RetrievalLearner RetrievalEval SaveBest KeepState FreezeBN WarmUp ClipValue StopAfter "
               "Statistics",
    "training.recipes": "get_recipe learner_from_recipe read_recipe run_seeds describe_test save_results hold_out_images",
    "papers.cgd": "cgd_learner CGDNet CGDLoss GD_CONFIGS",
    "papers.cfga": "CFGA Describe default_layers activation_mask largest_component seed_descriptor SEED_MODELS",
    "papers.explain": "explain_match evidence",
    "gallery.index": "Index show_search",
    "gallery.rerank": "Views expand fit_pca fit_whitening query_expansion database_augmentation k_reciprocal diffusion evaluate_rerank",
    "papers.fgic": "Classifier AccuracyEval fgic_learner finish_fgic classify_image accuracy confusion closest_classes "
                "show_confusion show_closest",
    "papers.programs": "load_seed_model read_features write_seed_json",
    "evaluation.comparison": "evaluate report describe_all compare",
    "evaluation.published": "known_numbers",
    "app.cli": "",
    "app.gallery": "",
    "app.page": "",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

_CHAPTERS = {module.partition(".")[0] for module in _NAMES}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _CHAPTERS: return import_module(f"fgir.{name}")
    if name not in _HOME: raise AttributeError(f"module 'fgir' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"fgir.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]: return sorted({*globals(), *_HOME, *_CHAPTERS})
