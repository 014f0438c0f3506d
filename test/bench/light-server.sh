#!/bin/sh
# The lightest MCP server: a shell that gives each request the same answer. For the case of many idle sessions, which measures the gateway
# and has no room for a thousand real servers.
while IFS= read -r line; do
  case $line in
    *'"id":'*) ;;
    *) continue ;;
  esac
  id=${line#*'"id":'}
  id=${id%%[,\}]*}
  printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"light","version":"1.0.0"}}}\n' "$id"
done
