from .faiss import (
    BLOCK as BLOCK,
    KINDS as KINDS,
    RANGES as RANGES,
    Engine as Engine,
    FaissStore as FaissStore,
    cells_for as cells_for,
    check_engine as check_engine,
    code_bytes as code_bytes,
    complete_settings as complete_settings,
    faiss_store as faiss_store,
    unit_rows as unit_rows,
    wanted_values as wanted_values,
)
from .index import (
    Index as Index,
    Store as Store,
    features_of as features_of,
    photo_table as photo_table,
    show_search as show_search,
    spellings_of as spellings_of,
)
from .milvus import (
    MilvusStore as MilvusStore,
    make_milvus_store as make_milvus_store,
    milvus_client as milvus_client,
    new_milvus_store as new_milvus_store,
    open_milvus_store as open_milvus_store,
)
from .rerank import (
    RERANK as RERANK,
    Projection as Projection,
    Views as Views,
    database_augmentation as database_augmentation,
    diffusion as diffusion,
    evaluate_rerank as evaluate_rerank,
    expand as expand,
    fit_pca as fit_pca,
    fit_whitening as fit_whitening,
    k_reciprocal as k_reciprocal,
    query_expansion as query_expansion,
)
from .segments import (
    Origin as Origin,
    load_store as load_store,
    read_store as read_store,
)
