"""The webhook function: what shops send is verified and kept; store mappings are administered here."""
