from lightning_uda.files import versions


def test_versions_come_in_the_order_of_their_numbers_and_nothing_else_is_one(tmp_path):
    for name in ("version_10", "version_9", "version_0", "version_x", "version_", "other_1"):
        (tmp_path / name).mkdir()
    (tmp_path / "version_3").write_text("a file")
    assert [path.name for path in versions(tmp_path)] == ["version_0", "version_9", "version_10"]
    assert versions(tmp_path / "nowhere") == []
