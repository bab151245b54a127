from .descriptors import (
    ColorHistogram as ColorHistogram,
    CropWarning as CropWarning,
    as_descriptor as as_descriptor,
    check_takes as check_takes,
    crop_for as crop_for,
    cut_for as cut_for,
    device_of as device_of,
    evaluating as evaluating,
    normalization_of as normalization_of,
    say_crop as say_crop,
    trained_crop as trained_crop,
)
from .exact import (
    BLOCK as BLOCK,
    MEMORY as MEMORY,
    METRICS as METRICS,
    SHARE as SHARE,
    SPARE as SPARE,
    Chunk as Chunk,
    Pair as Pair,
    chunks as chunks,
    compared as compared,
    counted as counted,
    exact_pairs as exact_pairs,
    exact_similarity as exact_similarity,
    members as members,
    neighbours as neighbours,
    numbered as numbered,
    top as top,
)
from .extraction import (
    batch_size as batch_size,
    batches_of as batches_of,
    by_size as by_size,
    describe_photo as describe_photo,
    extract as extract,
    precision_of as precision_of,
)
from .intervals import (
    TOO_FEW as TOO_FEW,
    confidence as confidence,
)
from .metrics import (
    AT_K as AT_K,
    OVER_ALL as OVER_ALL,
    TIES as TIES,
    Answers as Answers,
    check_ranks as check_ranks,
    cluster_agreement as cluster_agreement,
    first_hit_rank as first_hit_rank,
    list_name as list_name,
    measure as measure,
    recall_at_k as recall_at_k,
    score_lists as score_lists,
    score_queries as score_queries,
)
from .retrieval import (
    evaluate_recall as evaluate_recall,
    query_and_gallery as query_and_gallery,
    save_retrieval_pictures as save_retrieval_pictures,
    show_neighbours as show_neighbours,
    sides as sides,
)
from .shards import (
    extract_all as extract_all,
    extract_shard as extract_shard,
)
from .store import (
    ABOUT as ABOUT,
    Features as Features,
    Stacked as Stacked,
    create_file as create_file,
    open_features as open_features,
    pack_column as pack_column,
    read_features as read_features,
)
from .unfinished import (
    NoneReadable as NoneReadable,
    UnfinishedFeatures as UnfinishedFeatures,
    photographs_of as photographs_of,
    record_of as record_of,
    refuse_twice as refuse_twice,
    work_of as work_of,
    write_rows as write_rows,
)
