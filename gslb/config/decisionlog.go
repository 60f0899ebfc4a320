package config

import (
	glob "path"
	"slices"
	"strings"
)

// DecisionLog says which decisions are written down one by one, and where. The zero value writes
// none. It is read again at reload.
type DecisionLog struct {
	File     string   `json:"file,omitempty"`     // of lines of JSON: stdout or a path; opened anew at reload, so that it can be rotated
	Dnstap   string   `json:"dnstap,omitempty"`   // unix:/path of a socket or file:/path, for dnstap messages in Frame Streams
	Sample   *float64 `json:"sample,omitempty"`   // share of the decisions that are looked at, 0..1; default 1
	Services []string `json:"services,omitempty"` // globs; default all
	Pools    []string `json:"pools,omitempty"`    // globs; default all
	Reasons  []string `json:"reasons,omitempty"`  // default all
}

// DecisionReasons are the reasons of decisions, as gslb.Reason has them.
var DecisionReasons = []string{"policy", "trickle", "overflow", "failover", "degraded", "standby", "drained", "all-down", "fallback", "servfail"}

// Stdout is the File that stands for the standard output.
const Stdout = "stdout"

// EffectiveSample returns the share of the decisions that are looked at.
func (l DecisionLog) EffectiveSample() float64 {
	if l.Sample == nil {
		return 1
	}
	return *l.Sample
}

func (c *checker) decisionLog(p path, l DecisionLog) {
	if l.Sample != nil {
		between(c, p.at("sample"), *l.Sample, 0, 1)
	}
	if network, place, _ := strings.Cut(l.Dnstap, ":"); l.Dnstap != "" && (network != "unix" && network != "file" || place == "") {
		c.fail(p.at("dnstap"), "%q; expected unix:/path or file:/path", l.Dnstap)
	}
	for key, globs := range map[string][]string{"services": l.Services, "pools": l.Pools} {
		for i, g := range globs {
			if _, err := glob.Match(g, ""); err != nil {
				c.fail(p.at(key).item(i), "%q: %v; expected a glob such as *.example.com", g, err)
			}
		}
	}
	for i, r := range l.Reasons {
		if !slices.Contains(DecisionReasons, r) {
			c.fail(p.at("reasons").item(i), "%q; expected one of %s", r, strings.Join(DecisionReasons, ", "))
		}
	}
	if l.File == "" && l.Dnstap == "" && (l.Sample != nil || len(l.Services)+len(l.Pools)+len(l.Reasons) > 0) {
		c.missing(p.at("file"), "no value; expected where to write: file, dnstap or both")
	}
}

// relativeTo takes the names of files relative to dir.
func (l *DecisionLog) relativeTo(dir string) {
	if l.File != Stdout {
		l.File = relativeTo(dir, l.File)
	}
	if network, place, ok := strings.Cut(l.Dnstap, ":"); ok && place != "" {
		l.Dnstap = network + ":" + relativeTo(dir, place)
	}
}
