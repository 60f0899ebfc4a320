package tracing

// SchemaURL is the version of the OpenTelemetry semantic conventions that the first group of
// attribute names follows.
const SchemaURL = "https://opentelemetry.io/schemas/1.43.0"

// The spans made of a Query. A query of a steered service has all three.
const (
	SpanQuery  = "dns.query"   // SERVER, the root: from the read of the batch to the answer written
	SpanLookup = "geo.lookup"  // INTERNAL, child of dns.query: where the client is
	SpanDecide = "gslb.decide" // INTERNAL, child of dns.query: which pool, and why

	// INTERNAL, the root of a trace of its own, whose ids follow from the answer id: what all who
	// got that answer in that epoch were told. It links to the dns.query that was the first of
	// them here; requests that came from such an answer link to it.
	SpanDecision = "gslb.decision"
)

// Attributes of the OpenTelemetry semantic conventions.
const (
	AttrServiceName     = "service.name"         // resource, string: gslbd, gfe, frontend, backend …
	AttrServiceInstance = "service.instance.id"  // resource, string: the node's or the proxy's name
	AttrServiceVersion  = "service.version"      // resource, string: of the program
	AttrQuestionName    = "dns.question.name"    // string: qname as asked, without the trailing dot
	AttrAnswers         = "dns.answers"          // string[]: the addresses answered
	AttrServerAddress   = "server.address"       // string: the name server that answered
	AttrTransport       = "network.transport"    // string: udp or tcp
	AttrNetworkType     = "network.type"         // string: ipv4 or ipv6, between resolver and server
	AttrClientAddress   = "client.address"       // string: of the ECS option, otherwise the resolver's
	AttrErrorType       = "error.type"           // string: the rcode of an answer that failed; of a request the status, panic or abort
	AttrContinent       = "geo.continent.code"   // string: continent, two letters
	AttrCountry         = "geo.country.iso_code" // string: country, ISO 3166-1 alpha-2
	AttrRegion          = "geo.region.iso_code"  // string: subdivision, ISO 3166-2
	AttrLocality        = "geo.locality.name"    // string: city
	AttrLat             = "geo.location.lat"     // double: latitude, degrees
	AttrLon             = "geo.location.lon"     // double: longitude, degrees
)

// Attributes that the conventions do not have (they know of DNS only the client's side).
const (
	AttrQuestionType = "dns.question.type"  // string: A, AAAA …
	AttrResponseCode = "dns.response_code"  // string: NOERROR, NXDOMAIN …
	AttrSite         = "gslb.site"          // resource, string: the site of the node
	AttrClientPrefix = "gslb.client.prefix" // string: the client as far as it is known, address/source prefix length
	AttrClientASN    = "gslb.client.asn"    // int: its autonomous system
	AttrClientSite   = "gslb.client.site"   // string: the site that an override pins it to
	AttrECS          = "gslb.client.ecs"    // bool: whether the resolver sent the client's subnet (RFC 7871)
	AttrResolver     = "gslb.resolver"      // string: the address that asked
	AttrScope        = "gslb.scope"         // int: bits of the client's address that the answer depends on
	AttrTTL          = "gslb.ttl"           // int: of the answer, seconds
	AttrAnswerCount  = "gslb.answers"       // int: RRs in the answer section
	AttrSampledBy    = "gslb.sampled_by"    // string: why this query was sampled, see the Sampled constants
	AttrService      = "gslb.service"       // string: owner name of the steered service
	AttrPool         = "gslb.pool"          // string: the pool answered with, or of the proxy
	AttrReason       = "gslb.reason"        // string: policy, failover …
	AttrCandidates   = "gslb.candidates"    // string[]: the pools left, best first
	AttrStages       = "gslb.stages"        // string[]: "stage: pool note, …", what each stage of the policy kept, best first
	AttrRejected     = "gslb.rejected"      // string[]: "pool: reason"
	AttrRevision     = "gslb.revision"      // int: of the snapshot that decided
	AttrPlan         = "gslb.plan"          // string: content hash of the configuration that decided
	AttrDecisionID   = "gslb.decision.id"   // string: the answer id, 10 hex digits; the address of an AAAA answer carries it
	AttrUpstreamPool = "gslb.upstream.pool" // string: the pool that a proxy sent the request to
	AttrUpstreamSite = "gslb.upstream.site" // string: its site
	AttrVIP          = "gslb.vip"           // string: the address that a request was sent to
	AttrAnswerAge    = "gslb.answer_age"    // double: seconds, at most, from the answer to the request that it led to

	// Of the link from a request to a decision.
	AttrConfidence = "gslb.link.confidence" // double: how sure the link is; 1 where the address says so and is not an old one
	AttrLinkedBy   = "gslb.link.by"         // string: address or ledger

	// Of the daemon's own work.
	AttrCause    = "gslb.cause"    // string: what asked for the work
	AttrServices = "gslb.services" // int: services in the snapshot built
	AttrPools    = "gslb.pools"    // int: pools in it
	AttrFile     = "file.path"     // string: what was read

	AttrProbeResult = "gslb.probe.result" // string: what an attempt of a probe came to: ok, timeout, refused …
)
