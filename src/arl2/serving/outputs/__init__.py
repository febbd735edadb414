"""Where the pictures of a stream go: files, raw video into a pipe, a folder of HLS segments, a terminal."""
