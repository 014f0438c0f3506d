#!/bin/sh
# The lightest MCP server: a shell that answers each request with the same. For the case of many idle sessions, in which the
# gateway is measured and a real server's memory would only be in the way.
while IFS= read -r line; do
  case $line in
    *'"id":'*) ;;
    *) continue ;;
  esac
  id=${line#*'"id":'}
  id=${id%%[,\}]*}
  printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"light","version":"1.0.0"}}}\n' "$id"
done
