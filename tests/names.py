"Every name that `from fgir import …` gives, in use: for a type checker (`mypy tests/names.py`), which runs nothing."
import torch

import fgir
from fgir import (
    CFGA,
    ArcFaceLoss,
    BatchHardTripletLoss,
    CGDNet,
    Classifier,
    ColorHistogram,
    CosFaceLoss,
    DGPCRLoss,
    Features,
    Index,
    LabelSmoothingCE,
    MovingProxyLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    Pooled,
    PositiveProxyLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RetrievalNet,
    cgd_learner,
    compare,
    create_backbone,
    evaluate,
    evaluate_recall,
    explain_match,
    extract,
    fgic_learner,
    get_recipe,
    hold_out_classes,
    learner_from_recipe,
    load_model,
    make_table,
    neighbours,
    read_aircraft,
    read_cars,
    read_cub,
    read_folder,
    read_inshop,
    read_sop,
    read_table,
    recall_at_k,
    report,
    retrieval_dls,
    retrieval_learner,
    save_model,
    show_images,
    show_neighbours,
    show_search,
    synth_dataset,
)

for reader in (read_cub, read_cars, read_sop, read_inshop, read_aircraft, read_folder): table = reader('photographs')
table = read_table('table.csv') if len(table) else make_table(['a.jpg'], [0], ['jay'], ['train'], '.', 'birds')
table = hold_out_classes(synth_dataset('fish'))
show_images(table, [0, 1])

backbone = create_backbone('resnet18', pretrained=False)
net = RetrievalNet(backbone, dim=64)
save_model(net, 'net')
losses: list[torch.nn.Module] = [
    load_model('net'), BatchHardTripletLoss(), MultiSimilarityLoss(), LabelSmoothingCE(), CosFaceLoss(20, 64),
    NormSoftmaxLoss(20, 64), ProxyNCALoss(20, 64), ProxyAnchorLoss(20, 64), PositiveProxyLoss(20, 64),
    MovingProxyLoss(20, 64), ArcFaceLoss(20, 64), DGPCRLoss(20, 64)]
learn = retrieval_learner(retrieval_dls(table, size=64), net, losses[1])
learn = learner_from_recipe('sane', table, epochs=get_recipe('sane')['epochs'])
learn = cgd_learner(table) if len(table) else fgic_learner(table)

describers: list[torch.nn.Module] = [
    Pooled(backbone, ['S']), CFGA(backbone), ColorHistogram(), CGDNet(backbone), Classifier(backbone, 20)]
features: Features = extract(describers[0], table)
scores, rows = neighbours(features['S'], k=5)
print(recall_at_k(features['S'], features.table['label'].to_numpy()), evaluate_recall(features))
show_neighbours(table, [0], rows[:1], scores=scores[:1])
report(evaluate({'ours': features}), 'report.html', 'Ours')
print(compare(features, features), fgir.__version__)

index = Index.build(features)
show_search(index, 'photo.jpg', index.search_image('photo.jpg', net))
explain_match(net, 'photo.jpg', 'found.jpg')
