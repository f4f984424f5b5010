"""What a conversion that failed must not leave."""


def nothing_in(cache):
    return not cache.exists() or not [path for path in cache.rglob("*") if path.is_file()]
