package identity

var (
	MarshalClaims = marshalClaims
	ParseClaims   = parseClaims
	ClaimsOID     = claimsOID
)
