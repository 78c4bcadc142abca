"""Two processes, each with half of the batch, compute what one computes with all of it."""
import pytest
import torch
from mmdet.models import ResNet
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from networks import randomised
from processes import WORLD_SIZE, in_two_processes
from sa_mmdet.models import AttentionResNet, SAResNet, ShuffleAttention
from sa_mmdet.models.backbones import attention_bottleneck
from sa_mmdet.ops import implementations

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None

SMALL = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))  # 7 bottlenecks
PLUGIN = dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)


def network(backbone=SAResNet, norm_eval=True, **options) -> nn.Module:
    """A network in training with random weights, always the same."""
    model = randomised(backbone(50, norm_eval=norm_eval, **options)).double()
    model.train()
    return model


def loss(outputs):
    return sum(output.square().sum(dim=(1, 2, 3)).mean() for output in outputs)


def gradients(model) -> dict:
    return {name: parameter.grad for name, parameter in model.named_parameters()
            if parameter.requires_grad}


def assert_same_as_alone(results, options):
    """Outputs, and gradients to 1e-12 of each parameter's largest, of every process."""
    model = network(**options)
    whole = model(images())
    loss(whole).backward()
    expected = gradients(model)
    for rank, (outputs, actual) in enumerate(results):
        for output, all_outputs in zip(outputs, whole, strict=True):
            torch.testing.assert_close(output, all_outputs[rank::WORLD_SIZE], rtol=0,
                                       atol=1e-12 * all_outputs.abs().max().item())
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=0,
                                       atol=1e-12 * gradient.abs().max().item())


def step(model, rank):
    """Forward and backward of this process's images, twice: DDP complains in the second."""
    for _ in range(2):
        model.zero_grad()
        outputs = model(images()[rank::WORLD_SIZE])
        loss(outputs).backward()
    return [output.detach() for output in outputs]


def data_parallel(rank, options, wrapper):
    model = network(**options)
    parallel = MMDistributedDataParallel(model, find_unused_parameters=False, **wrapper)
    return step(parallel, rank), gradients(model)


@pytest.mark.parametrize(('options', 'wrapper'), [
    ({}, {}),
    (dict(frozen_stages=1), dict(static_graph=True)),
    (dict(SMALL, frozen_stages=1, with_cp=True), {}),
    (dict(SMALL, with_cp=True), dict(gradient_as_bucket_view=True)),
    (dict(SMALL, backbone=ResNet, plugins=[PLUGIN]), {}),
    (dict(SMALL, backbone=AttentionResNet, attention='SqueezeExcitation'), {}),
], ids=['all stages', 'frozen stage', 'checkpointed frozen stage', 'checkpointed', 'plugin', 'SE'])
def test_data_parallel(tmp_path, options, wrapper):
    assert_same_as_alone(in_two_processes(tmp_path, data_parallel, options, wrapper), options)


def accumulated(rank, options):
    model = network(**options)
    parallel = MMDistributedDataParallel(model)
    first, second = images()[rank::WORLD_SIZE].split(1)
    with parallel.no_sync():
        a = parallel(first)
        (loss(a) / 2).backward()
    b = parallel(second)
    (loss(b) / 2).backward()
    outputs = [torch.cat(parts).detach() for parts in zip(a, b, strict=True)]
    return outputs, gradients(model)


def test_accumulated_gradients(tmp_path):
    assert_same_as_alone(in_two_processes(tmp_path, accumulated, SMALL), SMALL)


# What is sharded of its own, and gathered for its own calls only, beside the network.
SHARDED = pytest.mark.parametrize(('sharded', 'fusions'), [
    ((), 7), ((Bottleneck,), 7), ((nn.Sequential,), 7),
    ((nn.Conv2d, nn.BatchNorm2d, ShuffleAttention), 0),
], ids=['network', 'bottlenecks', 'sequences', 'layers'])


def counted_step(model, rank):
    calls, compute = [], attention_bottleneck.compute
    attention_bottleneck.compute = lambda *args: calls.append(1) or compute(*args)
    return step(model, rank), len(calls) // 2


def fully_sharded(rank, sharded, **options):
    model = network(**SMALL, **options)
    mesh = init_device_mesh('cpu', (WORLD_SIZE,))
    for module in reversed(list(model.modules())):
        if module is model or isinstance(module, sharded):
            fully_shard(module, mesh=mesh)
    outputs, fusions = counted_step(model, rank)
    return outputs, {name: g.full_tensor() for name, g in gradients(model).items()}, fusions


def mmengine_fully_sharded(rank, sharded):
    model = MMFullyShardedDataParallel(
        network(**SMALL), auto_wrap_policy=ModuleWrapPolicy(sharded),
        device_id=torch.device('cpu'), use_orig_params=True)
    outputs, fusions = counted_step(model, rank)
    with model.summon_full_params(model, with_grads=True):
        whole = {name.replace('_fsdp_wrapped_module.', ''): gradient.clone()
                 for name, gradient in gradients(model).items()}
    return outputs, whole, fusions


def fully_sharded_sync_bn(rank, sharded):
    return fully_sharded(rank, sharded, norm_cfg=dict(type='SyncBN'))


needs_fully_shard = pytest.mark.skipif(
    fully_shard is None, reason='fully_shard needs torch >= 2.6')


@pytest.mark.parametrize('shard', [
    pytest.param(fully_sharded, marks=needs_fully_shard), mmengine_fully_sharded])
@SHARDED
def test_fully_sharded(tmp_path, shard, sharded, fusions):
    """FSDP 2 of PyTorch and FSDP 1 as MMEngine wraps it, whatever parts they gather."""
    results = in_two_processes(tmp_path, shard, sharded)
    assert_same_as_alone([result[:2] for result in results], SMALL)
    if implementations()['cpu'] is None:
        assert [result[2] for result in results] == [fusions] * WORLD_SIZE


@needs_fully_shard
def test_frozen_sync_bn(tmp_path):
    """It computes what BN does, also where PyTorch cannot synchronise, as on CPUs."""
    results = in_two_processes(tmp_path, fully_sharded_sync_bn, (Bottleneck, ))
    assert_same_as_alone([result[:2] for result in results], SMALL)
