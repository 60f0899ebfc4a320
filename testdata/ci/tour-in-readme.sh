#!/usr/bin/env bash
# The README shows what the tour prints. This compares the two: headings, what they say, commands, and the name of each check must be the
# same, in the same order; what differs from run to run (times, who answered, pictures, traces) is not looked at.
#
#   tour-in-readme.sh FILE             FILE is the output of a whole tour
#   tour-in-readme.sh -update FILE     puts FILE into the README
set -euo pipefail
cd "$(dirname "$0")/../.."
begin='<!-- the tour: written by testdata/ci/tour-in-readme.sh -update -->' end='<!-- end of the tour -->'

# same prints the lines of a tour that are the same in each.
same() {
  awk '/^== / { said = 0 }
    /^$/ && said++ < 2 { next }
    /^  ✓ / { sub(/: .*/, "") ; print; next }
    /^== |^  \$ / || said == 1 { sub(/between the regions: .*/, "between the regions"); print }'
}

if [ "${1:-}" = -update ]; then
  awk -v begin="$begin" -v end="$end" -v tour="$2" '
    $0 == end { skip = 0 }
    !skip { print }
    $0 == begin { skip = 1; print "\n```"; while ((getline line < tour) > 0) if (line != "" || n++) print line; print "```\n" }' README.md >README.new
  mv README.new README.md
  exit
fi
shown() { awk -v begin="$begin" -v end="$end" '$0 == end { on = 0 } on && !/^```/ { print } $0 == begin { on = 1 }' README.md; }
diff -u --label README.md --label "the tour" <(shown | same) <(same <"$1") ||
  { echo "the README shows another tour; testdata/ci/tour-in-readme.sh -update FILE puts this one there" >&2; exit 1; }
