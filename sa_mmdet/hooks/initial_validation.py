from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class InitialValidationHook(Hook):
    """Validate before the first iteration too: what the initial weights are worth.

    The metrics are logged as those of epoch 0. A resumed training begins in the same way, with the
    epoch that it goes on after: the validation of that one may have been interrupted.

    Raises:
        ValueError: the config has no validation.
    """

    priority = 'LOWEST'  # when the other hooks are ready

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is None:
            raise ValueError('InitialValidationHook needs a validation: give val_dataloader, '
                             'val_evaluator and val_cfg')
        runner.val_loop.run()
