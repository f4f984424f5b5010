"""scope scorers and scope prefills list every plug-in file with its purpose."""

from scope_cli.policies import plugins


def test_every_plugin_is_listed(scope):
    for command, kind in (("scorers", "scorers"), ("prefills", "prefills")):
        result = scope(command)
        assert result.code == 0
        for name in plugins.names(kind):
            assert name in result.stdout
            assert plugins.purpose(plugins.plugin_class(kind, name))[:30] in result.stdout
