"""LeRobotDataset v3.0: opened as it is, checked, and written from any store.

    meta/info.json                           rates, features, templates of the paths below
    meta/tasks.parquet                       number -> instruction
    meta/episodes/chunk-*/file-*.parquet     one row an episode: its rows, its place in the videos
    data/chunk-*/file-*.parquet              one row a step, many episodes a file
    videos/<camera>/chunk-*/file-*.mp4       the pictures of many episodes one after another

The number of a video file differs from that of the data file, and between cameras. A row's picture
is the one nearest to `from_timestamp + timestamp` on the clock of its video file.
"""
