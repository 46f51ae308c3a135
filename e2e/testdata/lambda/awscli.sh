#!/usr/bin/env bash
# Works with a function through the AWS CLI, as a user of AWS Lambda would, and
# checks every answer.
#
#   awscli.sh --endpoint-url URL [--code FILE] [--prefix NAME]
#
#   --code    the Python file to deploy; its handler is index.handler
#             (default: index.py beside this script)
#   --prefix  what the names of functions begin with (default: awscli)
#
# Keys and region come from the environment, as always with the AWS CLI. Exit
# status: 0 when all is as it should be, 1 when not, 2 on bad usage.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
endpoint=
code=$here/index.py
prefix=awscli
while (($# > 0)); do
  case $1 in
    --endpoint-url) endpoint=$2; shift 2 ;;
    --code) code=$2; shift 2 ;;
    --prefix) prefix=$2; shift 2 ;;
    *) printf 'awscli.sh: unknown argument %s\n' "$1" >&2; exit 2 ;;
  esac
done
if [[ -z $endpoint ]]; then
  printf 'awscli.sh: --endpoint-url is missing\n' >&2
  exit 2
fi

export AWS_PAGER='' AWS_MAX_ATTEMPTS=1 AWS_EC2_METADATA_DISABLED=true
export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-east-1}
# The distribution's AWS CLI, where another program of that name comes first.
aws=/usr/bin/aws
[[ -x $aws ]] || aws=aws
python=/usr/bin/python3
[[ -x $python ]] || python=python3

name=$prefix-$$
role=arn:aws:iam::000000000000:role/any
dir=$(mktemp -d)

lambda() { "$aws" lambda "$@" --endpoint-url "$endpoint" --output json; }

cleanup() {
  lambda delete-function --function-name "$name" >/dev/null 2>&1 || true
  rm -rf "$dir"
}
trap cleanup EXIT

die() { printf 'awscli.sh: %s\n' "$*" >&2; exit 1; }

# field FILE EXPRESSION prints a part of a JSON file; d is the whole.
field() { "$python" -c 'import json,sys; d=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"; }

# want FILE EXPRESSION VALUE
want() {
  local got
  got=$(field "$1" "$2") || die "$2 cannot be read from: $(cat "$1")"
  [[ $got == "$3" ]] || die "$2 is '$got', want '$3', in: $(cat "$1")"
}

# refused ERROR COMMAND... runs a command that must fail with that error. It
# goes on in the background, since starting the AWS CLI is what takes time.
pending=()
refused() {
  must_fail "$@" &
  pending+=($!)
}

must_fail() {
  local error=$1 out
  shift
  if out=$("$@" 2>&1); then die "$* succeeded, want $error"; fi
  [[ $out == *"($error)"* ]] || die "$* failed without $error: $out"
}

# settle waits for the commands in the background. It comes before what
# changes the answers that they get.
settle() {
  local pid failed=false
  for pid in "${pending[@]}"; do
    wait "$pid" || failed=true
  done
  pending=()
  if $failed; then exit 1; fi
}

pack() { # pack VERSION FILE
  rm -rf "$dir/pack"
  mkdir "$dir/pack"
  sed "s/^VERSION = .*/VERSION = \"$1\"/" "$code" >"$dir/pack/index.py"
  "$python" -m zipfile -c "$2" "$dir/pack/index.py"
}

step() {
  settle
  printf -- '- %s\n' "$*"
}

step create
pack one "$dir/one.zip"
pack two "$dir/two.zip"
lambda create-function --function-name "$name" --runtime python3.11 --handler index.handler --role "$role" \
  --zip-file "fileb://$dir/one.zip" --environment 'Variables={GREETING=hello}' --memory-size 128 --timeout 20 \
  --tags team=a >"$dir/created"
want "$dir/created" 'd["State"]' Active
want "$dir/created" 'd["Version"]' '$LATEST'
want "$dir/created" 'd["CodeSha256"]' "$("$python" -c 'import base64,hashlib,sys; print(base64.b64encode(hashlib.sha256(open(sys.argv[1],"rb").read()).digest()).decode())' "$dir/one.zip")"
arn=$(field "$dir/created" 'd["FunctionArn"]')
lambda wait function-active --function-name "$name"
refused ResourceConflictException lambda create-function --function-name "$name" --runtime python3.11 --handler index.handler \
  --role "$role" --zip-file "fileb://$dir/one.zip"

step list and get
lambda list-functions >"$dir/list"
want "$dir/list" "sum(f['FunctionName'] == '$name' for f in d['Functions'])" 1
lambda get-function --function-name "$arn" >"$dir/get"
want "$dir/get" 'd["Configuration"]["FunctionName"]' "$name"
want "$dir/get" 'd["Tags"]["team"]' a
"$python" -c 'import sys,urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' \
  "$(field "$dir/get" 'd["Code"]["Location"]')" >"$dir/downloaded.zip"
cmp "$dir/one.zip" "$dir/downloaded.zip" || die "the downloaded package is another one"
lambda get-function-configuration --function-name "$name:\$LATEST" >"$dir/configuration"
want "$dir/configuration" 'd["Environment"]["Variables"]["GREETING"]' hello
refused ResourceNotFoundException lambda get-function --function-name "$name-none"

step invoke
payload() { printf '%s' "$1" >"$dir/payload"; printf 'fileb://%s/payload' "$dir"; }
lambda invoke --function-name "$name" --payload "$(payload '{"a":[1,"ü"]}')" \
  --client-context "$(printf '{"custom":{"k":"v"}}' | base64 -w0)" "$dir/answer" >"$dir/invoked"
want "$dir/invoked" 'd["StatusCode"]' 200
want "$dir/invoked" 'd["ExecutedVersion"]' '$LATEST'
want "$dir/answer" 'd["event"]["a"][1]' ü
want "$dir/answer" 'd["function"]' "$name"
want "$dir/answer" 'd["version"]' one
want "$dir/answer" 'd["greeting"]' hello
want "$dir/answer" 'd["custom"]' "{'k': 'v'}"
lambda invoke --function-name "$arn" --log-type Tail "$dir/answer" >"$dir/invoked"
field "$dir/invoked" '__import__("base64").b64decode(d["LogResult"]).decode()' | grep handling >/dev/null || die "the log tail lacks what the function printed"
want "$dir/answer" 'd["event"]' '{}'
lambda invoke --function-name "$name" --payload "$(payload '{"fail":"on purpose"}')" "$dir/answer" >"$dir/invoked"
want "$dir/invoked" 'd["FunctionError"]' Unhandled
want "$dir/answer" 'd["errorType"]' ValueError
want "$dir/answer" 'd["errorMessage"]' 'on purpose'
lambda invoke --function-name "$name" --invocation-type Event --payload "$(payload '{"b":2}')" "$dir/answer" >"$dir/invoked"
want "$dir/invoked" 'd["StatusCode"]' 202
lambda invoke --function-name "$name" --invocation-type DryRun "$dir/answer" >"$dir/invoked"
want "$dir/invoked" 'd["StatusCode"]' 204
refused InvalidRequestContentException lambda invoke --function-name "$name" --payload "$(payload 'no JSON')" "$dir/none"
refused ResourceNotFoundException lambda invoke --function-name "$name-none" "$dir/none"
"$python" -c 'print("\"" + "x" * (6 << 20) + "\"")' >"$dir/large"
refused RequestTooLargeException lambda invoke --function-name "$name" --payload "fileb://$dir/large" "$dir/none"
"$python" -c 'print("\"" + "x" * (1 << 20) + "\"")' >"$dir/larger"
refused RequestTooLargeException lambda invoke --function-name "$name" --invocation-type Event --payload "fileb://$dir/larger" "$dir/none"

step update the code
revision=$(field "$dir/created" 'd["RevisionId"]')
refused PreconditionFailedException lambda update-function-code --function-name "$name" --zip-file "fileb://$dir/two.zip" \
  --revision-id 00000000-0000-0000-0000-000000000000
settle
lambda update-function-code --function-name "$name" --zip-file "fileb://$dir/two.zip" --revision-id "$revision" >"$dir/updated"
lambda wait function-updated --function-name "$name"
lambda invoke --function-name "$name" "$dir/answer" >/dev/null
want "$dir/answer" 'd["version"]' two

step update the configuration
lambda update-function-configuration --function-name "$name" --memory-size 192 --description changed \
  --environment 'Variables={GREETING=bye}' >"$dir/updated"
want "$dir/updated" 'd["MemorySize"]' 192
want "$dir/updated" 'd["Handler"]' index.handler
want "$dir/updated" 'd["Timeout"]' 20
lambda invoke --function-name "$name" "$dir/answer" >/dev/null
want "$dir/answer" 'd["greeting"]' bye
want "$dir/answer" 'd["memory"]' 192
refused InvalidParameterValueException lambda update-function-configuration --function-name "$name" --timeout 901

step concurrency
lambda put-function-concurrency --function-name "$name" --reserved-concurrent-executions 0 >"$dir/reserved"
want "$dir/reserved" 'd["ReservedConcurrentExecutions"]' 0
refused TooManyRequestsException lambda invoke --function-name "$name" "$dir/none"
settle
lambda put-function-concurrency --function-name "$name" --reserved-concurrent-executions 5 >/dev/null
lambda get-function-concurrency --function-name "$name" >"$dir/reserved"
want "$dir/reserved" 'd["ReservedConcurrentExecutions"]' 5
refused ProvisionedConcurrencyConfigNotFoundException lambda get-provisioned-concurrency-config --function-name "$name" --qualifier '$LATEST'
settle
lambda put-provisioned-concurrency-config --function-name "$name" --qualifier '$LATEST' \
  --provisioned-concurrent-executions 1 >"$dir/provisioned"
want "$dir/provisioned" 'd["RequestedProvisionedConcurrentExecutions"]' 1
tries=0
until lambda get-provisioned-concurrency-config --function-name "$name" --qualifier '$LATEST' >"$dir/provisioned" &&
  [[ $(field "$dir/provisioned" 'd["Status"]') == READY ]]; do
  tries=$((tries + 1))
  ((tries < 60)) || die "the provisioned concurrency does not get ready: $(cat "$dir/provisioned")"
  sleep 0.5
done
lambda delete-function-concurrency --function-name "$name"

step asynchronous invocations
refused ResourceNotFoundException lambda get-function-event-invoke-config --function-name "$name"
settle
lambda put-function-event-invoke-config --function-name "$name" --maximum-retry-attempts 1 --maximum-event-age-in-seconds 120 \
  --destination-config "OnFailure={Destination=$arn}" >"$dir/event"
want "$dir/event" 'd["MaximumRetryAttempts"]' 1
lambda get-function-event-invoke-config --function-name "$name" >"$dir/event"
want "$dir/event" 'd["MaximumEventAgeInSeconds"]' 120
want "$dir/event" 'd["DestinationConfig"]["OnFailure"]["Destination"]' "$arn"

step tags
lambda tag-resource --resource "$arn" --tags 'team=b'
lambda list-tags --resource "$arn" >"$dir/tags"
want "$dir/tags" 'd["Tags"]' "{'team': 'b'}"

step what is not there
refused ResourceNotFoundException lambda get-policy --function-name "$name"
refused InvalidParameterValueException lambda publish-version --function-name "$name"
refused UnknownOperationException lambda list-layers

step who has no key is refused
refused InvalidSignatureException env AWS_SECRET_ACCESS_KEY=wrong "$aws" lambda list-functions --endpoint-url "$endpoint"
refused UnrecognizedClientException env AWS_ACCESS_KEY_ID=AKIAUNKNOWN AWS_SECRET_ACCESS_KEY=wrong "$aws" lambda list-functions --endpoint-url "$endpoint"
refused MissingAuthenticationTokenException "$aws" lambda list-functions --endpoint-url "$endpoint" --no-sign-request

step delete
lambda delete-function --function-name "$name"
refused ResourceNotFoundException lambda delete-function --function-name "$name"
settle
printf 'the AWS CLI works as it should\n'
