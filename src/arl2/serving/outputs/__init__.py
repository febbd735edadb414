"""Where the frames of a stream go besides files: raw video into a pipe, a folder of HLS segments, a terminal."""
