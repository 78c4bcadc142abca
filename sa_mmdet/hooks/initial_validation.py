from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class InitialValidationHook(Hook):
    """Validate before the first iteration too, to measure the initial weights.

    The metrics are logged for epoch 0. A resumed training also validates first, and logs the last
    finished epoch, whose validation may have been interrupted.

    Raises:
        ValueError: the config has no validation loop.
    """

    priority = 'LOWEST'  # when the other hooks are ready

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is None:
            raise ValueError('InitialValidationHook needs a validation loop: give val_dataloader, '
                             'val_evaluator and val_cfg')
        runner.val_loop.run()
