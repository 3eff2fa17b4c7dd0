#!/bin/sh
# Run `maskrcnn`, and run it again while it stops before its end: with exit code 3, or killed. Each attempt continues the
# run. The others are final: 0 done, 1 complete with failures, 2 wrong usage, which another attempt would not change.
#   attempts.sh 3 segment s3://BUCKET/images s3://BUCKET/out --device cuda
attempts=$1
shift
while :; do
  maskrcnn "$@"
  code=$?
  attempts=$((attempts - 1))
  case $code in
    0 | 1 | 2) exit $code ;;
  esac
  [ "$attempts" -gt 0 ] || exit $code
  sleep "${PAUSE_S:-30}"
done
